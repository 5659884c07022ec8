"""A CNN as its blocks, and what passes through one of them.

Legend: b images, c channels, h height, w width, n places of all images, k entries of a kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from mergenet_core.architectures.axes import Form
from mergenet_core.architectures.blocks import Block, blocks_of
from mergenet_core.architectures.structure import LogicalWeight
from mergenet_core.fitting.context import FitModel

_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True)
class Layer:
    """A convolution without bias and the BatchNorm behind it."""

    role: str
    """The roles of its weights without what is their own, such as `block.in.`."""
    form: Form
    axis: str
    """The axis of its output channels."""
    convolution: nn.Conv2d
    norm: nn.BatchNorm2d

    @property
    def width(self) -> int:
        """Its output channels."""
        return self.convolution.out_channels


@dataclass(frozen=True)
class Part:
    """One block of a CNN."""

    name: str
    module: nn.Module
    hidden: tuple[Layer, ...]
    """Its layers before the last."""
    last: Layer
    shortcut: Layer | None
    """The layer that leads around the others, if there is one."""
    skip: bool
    """The input itself is added to what the last layer gives."""
    linear: bool
    """There is no activation at its end."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All that are solved."""
        return (*self.hidden, self.last, *([] if self.shortcut is None else [self.shortcut]))


@dataclass(frozen=True)
class Seen:
    """What passed through a part: feature maps, by the role of the layer that read or gave them."""

    x: Tensor
    """The part's input."""
    inputs: dict[str, Tensor]
    """What the convolution read."""
    raw: dict[str, Tensor]
    """What the convolution gave."""
    normed: dict[str, Tensor]
    """What the norm behind it gave."""
    summed: Tensor
    """The last layer's output with what led around it added, before the activation."""
    out: Tensor


def parts_of(model: FitModel) -> tuple[Part, ...]:
    """The blocks of a CNN from the first to the last, without its head."""
    return tuple(_part(model.module, block) for block in blocks_of(model.structure))


def _part(model: nn.Module, block: Block) -> Part:
    norms = {weight.role: weight for weight in block.weights if weight.role.endswith("norm.weight")}
    convolutions = [weight for weight in block.weights if weight.role.endswith("conv")]
    chain = [weight for weight in convolutions if weight.role != "shortcut.conv"]
    around = [weight for weight in convolutions if weight.role == "shortcut.conv"]

    def layer(weight: LogicalWeight) -> Layer:
        role = weight.role.removesuffix("conv")
        convolution = module_of(model, weight.name, nn.Conv2d)
        norm = module_of(model, norms[f"{role}norm.weight"].name, nn.BatchNorm2d)
        return Layer(role, weight.form, weight.out, convolution, norm)

    return Part(
        name=block.name,
        module=model.get_submodule(block.name),
        hidden=tuple(layer(weight) for weight in chain[:-1]),
        last=layer(chain[-1]),
        shortcut=layer(around[0]) if around else None,
        skip=not around and chain[0].inp == chain[-1].out,
        linear=block.linear,
    )


def module_of(model: nn.Module, weight: str, kind: type[_Module]) -> _Module:
    """The module that has a weight."""
    found = model.get_submodule(weight.rpartition(".")[0])
    assert isinstance(found, kind), f"{weight} belongs to a {type(found).__name__}, not to a {kind.__name__}"
    return found


def observe(part: Part, x: Tensor) -> Seen:
    """Run a part on the device that it is on, and keep what its layers read and gave."""
    x = x.to(part.last.convolution.weight.device)
    inputs: dict[str, Tensor] = {}
    raw: dict[str, Tensor] = {}
    normed: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for layer in part.layers:

            def convolved(_: nn.Module, read: tuple[Tensor, ...], given: Tensor, role: str = layer.role) -> None:
                inputs[role], raw[role] = read[0], given

            def normalised(_: nn.Module, read: tuple[Tensor, ...], given: Tensor, role: str = layer.role) -> None:
                normed[role] = given.clone()  # a block may add to it in place

            hooks.callback(layer.convolution.register_forward_hook(convolved).remove)
            hooks.callback(layer.norm.register_forward_hook(normalised).remove)
        out: Tensor = part.module(x)
    summed = normed[part.last.role]
    if part.shortcut is not None:
        summed = summed + normed[part.shortcut.role]
    return Seen(x, inputs, raw, normed, summed + x if part.skip else summed, out)


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Models in evaluation mode; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def places(X_bchw: Tensor) -> Tensor:
    """Every place of every image as a row. Shapes: (b, c, h, w) → (n, c)."""
    return X_bchw.movedim(1, -1).reshape(-1, X_bchw.shape[1])


def patches(X_bchw: Tensor, convolution: nn.Conv2d) -> Tensor:
    """What a convolution reads for each of its outputs. Shapes: (b, c, h, w) → (n, c·k)."""
    padding, stride = convolution.padding, convolution.stride
    assert not isinstance(padding, str), "the declared families pad by numbers"
    if convolution.kernel_size == (1, 1) and padding == (0, 0):
        return places(X_bchw[:, :, :: stride[0], :: stride[1]])
    X_bil = nn.functional.unfold(X_bchw, convolution.kernel_size, convolution.dilation, padding, stride)
    return X_bil.movedim(1, -1).reshape(-1, X_bil.shape[1])


def resized_as(X_bchw: Tensor, like: Tensor) -> Tensor:
    """Feature maps at the height and width of others, by averages."""
    size = like.shape[-2], like.shape[-1]
    return X_bchw if X_bchw.shape[-2:] == size else nn.functional.adaptive_avg_pool2d(X_bchw, size)
