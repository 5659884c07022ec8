"""A model's weights by role and layer, as matrices outputs first that share the model's memory."""

from __future__ import annotations

import re
from typing import Literal

import torch
from torch import Tensor, nn

from mergenet_core.fitting.context import FitModel
from mergenet_core.fitting.gram import Affine

Point = tuple[nn.Module, Literal["input", "output"]]
"""What a module reads or writes; of several tensors the first one counts."""


class RoleWeights:
    """Reads and writes a transformer's weights by what they do."""

    def __init__(self, model: FitModel) -> None:
        self.module, self.structure = model.module, model.structure
        self._entries = model.module.state_dict(keep_vars=True)
        weights = model.structure.weights
        self._weights = {(weight.role, weight.layer): weight for weight in weights}

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.module.parameters()).device

    def has(self, role: str, layer: int | None = None) -> bool:
        """Whether the model has this weight."""
        return (role, layer) in self._weights

    def view(self, role: str, layer: int | None = None) -> Tensor:
        """A weight in the model's memory, outputs first, however it is stored; an embedding is rows × stream."""
        weight = self._weights[role, layer]
        entry: Tensor = self._entries[weight.stored.name if weight.stored else weight.name].detach()
        if weight.form == "embedding":
            return entry.view(-1, entry.shape[-1])
        if weight.stored is None:
            return entry
        entry = entry.T if weight.stored.transposed else entry
        return entry if weight.stored.rows is None else entry[slice(*weight.stored.rows)]

    def write(self, role: str, W: Tensor, layer: int | None = None, rows: slice | Tensor = slice(None)) -> None:
        """Replace a weight, or some of its rows; a weight that the model lacks is left out."""
        if self.has(role, layer):
            self.view(role, layer)[rows] = W.to(self.view(role, layer))

    def write_affine(
        self, role: str, found: Affine, layer: int | None = None, rows: slice | Tensor = slice(None)
    ) -> None:
        """Replace a linear layer, or some of its outputs, by a solved map."""
        self.write(f"{role}.weight", found.W_io.T, layer, rows)
        self.write(f"{role}.bias", found.b_o, layer, rows)

    def computing(self, role: str, layer: int | None = None) -> nn.Module:
        """The module that a weight belongs to, several roles' where it is fused."""
        return self.module.get_submodule(self.module_name(role, layer))

    def module_name(self, role: str, layer: int | None = None) -> str:
        """The name of the module that a weight belongs to."""
        weight = self._weights[role, layer]
        return (weight.stored.name if weight.stored else weight.name).rpartition(".")[0]

    def outputs(self, role: str, layer: int | None = None) -> slice:
        """Which of the outputs of `computing` are this weight's."""
        stored = self._weights[role, layer].stored
        return slice(None) if stored is None or stored.rows is None else slice(*stored.rows)

    def middle(self, layer: int) -> Point:
        """Where the stream between attention and feed-forward can be read."""
        role = "ffn.norm.weight" if self.structure.family.prenorm else "ffn.up.weight"
        return self.computing(role, layer), "input"

    def layer_name(self, layer: int) -> str:
        """The name of the module that is a whole layer."""
        name = next(weight.name for weight in self.structure.weights if weight.layer == layer)
        found = re.match(rf"(.*?\.)?{layer}(?=\.)", name)
        assert found is not None, "a layer's weights have its number in their names"
        return found[0]

    def layer_module(self, layer: int) -> nn.Module:
        """The module that is a whole layer."""
        return self.module.get_submodule(self.layer_name(layer))
