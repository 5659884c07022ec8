"""Which models method `fit` can solve one from the other, from their structure alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mergenet_core.architectures.axes import Kind
from mergenet_core.architectures.structure import ModelStructure
from mergenet_core.errors import PairingRefused
from mergenet_core.pairing.result import Pairing

FITTED_FROM: Mapping[Kind, tuple[Kind, ...]] = {
    "cnn": ("cnn",), "mlp": ("mlp",), "encoder": ("encoder",), "vit": ("vit",), "decoder": ("decoder",),
}  # fmt: skip
"""The kinds of target that are fitted, each with the kinds of source that read the same inputs."""


def fit_pairing(
    source: tuple[ModelStructure, ...], target: tuple[ModelStructure, ...], *, same_tokens: bool = True
) -> Pairing:
    """What a fit writes: every weight of the target's body. Raises: `PairingRefused`."""
    for side, towers in (("source", source), ("target", target)):
        if len(towers) != 1:
            raise PairingRefused(
                f"method fit solves a model of one tower, and the {side} has {len(towers)}; take method project"
            )
    own, other = target[0].kind, source[0].kind
    if other not in FITTED_FROM.get(own, ()):
        known = "; ".join(f"{kind} from {' or '.join(kinds)}" for kind, kinds in FITTED_FROM.items())
        raise PairingRefused(
            f"method fit has no solver for a target of kind {own} from a source of kind {other}; it fits {known}. "
            "Take other models, or another transfer.method"
        )
    if not same_tokens:
        raise PairingRefused(
            "method fit compares activations token by token, and the models have different tokenizers; give "
            "target.model.tokenizer the source's, or take method project"
        )
    heads = [weight.name for weight in target[0].weights if weight.role.startswith(("head", "answers", "tokens"))]
    written = {weight.name: weight.shape for weight in target[0].weights if weight.name not in heads}
    return Pairing(
        method="fit",
        kind=own,
        axes={},
        pairs=(),
        unpaired=dict.fromkeys(heads, "a head is solved only where the source has one for the same labels"),
        rank=0,
        transferable_parameters=sum(
            math.prod(shape) for name, shape in written.items() if not name.endswith(("running_mean", "running_var"))
        ),
    )
