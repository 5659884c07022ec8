"""A transformer run layer by layer over all chunks: only the stream at the next layer's input is kept between layers.

Legend: b examples, t tokens, d the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from mergenet_core.fitting.transformer.role_weights import Point, RoleWeights
from mergenet_core.tasks.task import Batch

Recorded = Mapping[str, Tensor]


@dataclass(frozen=True)
class _Call:
    """How a model calls one of its layers, without the stream."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Stopped(Exception):
    """What was needed is recorded."""


class LayerWalk:
    """The layers of one model, run one at a time with the weights as they are then."""

    def __init__(self, model: RoleWeights, inputs: Sequence[Batch]) -> None:
        self._model, self._inputs = model, inputs
        self._layers = [model.layer_module(layer) for layer in range(model.structure.layers)]
        self._calls: list[list[_Call]] = [[] for _ in inputs]
        self.streams: list[Tensor] = [torch.empty(0) for _ in inputs]
        """For each chunk, the input of the layer that comes next. Shapes: (b, t, d)."""

    def run_whole(self, points: Mapping[str, Point] | None = None) -> Iterator[tuple[int, Recorded]]:
        """Run the whole model on each chunk, note how it calls its layers, and stand before the first one."""
        for chunk in range(len(self._inputs)):
            calls: list[_Call] = []
            streams: list[Tensor] = []
            with recording(points or {}) as recorded, ExitStack() as hooks:
                for layer in self._layers:
                    handle = layer.register_forward_pre_hook(_note(calls, streams), with_kwargs=True)
                    hooks.callback(handle.remove)
                self._forward(chunk)
            self._calls[chunk], self.streams[chunk] = calls, streams[0].cpu()
            yield chunk, recorded

    def start(self) -> None:
        """Stand before the first layer, with the embeddings as they are now."""
        for _ in self.run_whole():
            pass

    def enter(self, chunk: int, points: Mapping[str, Point], stop: str) -> Recorded:
        """Run the model on one chunk up to one of the points."""
        with recording(points, stop=stop) as recorded:
            self._forward(chunk)
        return recorded

    def run(
        self, chunk: int, layer: int, points: Mapping[str, Point] | None = None, stop: str | None = None,
        stream_btd: Tensor | None = None,
    ) -> tuple[Tensor, Recorded]:  # fmt: skip
        """Run one layer on one chunk: its output and what was recorded; an empty output if it stopped early."""
        stream_btd = (self.streams[chunk] if stream_btd is None else stream_btd).to(self._model.device)
        output = torch.empty(0)
        with recording(points or {}, stop=stop) as recorded:
            call = self._calls[chunk][layer]
            output = _first(self._layers[layer](stream_btd, *call.args, **call.kwargs))
        return output, recorded

    def advance(self, layer: int) -> None:
        """Replace each chunk's stream by the layer's output."""
        for chunk in range(len(self._inputs)):
            self.streams[chunk] = self.run(chunk, layer)[0].cpu()

    def _forward(self, chunk: int) -> None:
        self._model.module(**{name: value.to(self._model.device) for name, value in self._inputs[chunk].items()})


def _note(calls: list[_Call], streams: list[Tensor]) -> Callable[..., None]:
    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rest = {name: _uncached(value) for name, value in kwargs.items()}
        streams.append(args[0] if args else rest.pop("hidden_states"))
        calls.append(_Call(tuple(map(_uncached, args[1:])), rest))

    return note


def _uncached(value: Any) -> Any:
    """A layer that runs again must not find its own keys and values in a decoder's cache."""
    return None if isinstance(value, Cache) else value


@contextmanager
def recording(points: Mapping[str, Point], stop: str | None = None) -> Iterator[dict[str, Tensor]]:
    """Record what modules read or write in a forward pass, which ends at the point `stop`."""
    recorded: dict[str, Tensor] = {}

    def record(name: str, tensor: Tensor) -> None:
        recorded[name] = tensor.detach()
        if name == stop:
            raise _Stopped

    with ExitStack() as hooks:
        for name, (module, side) in points.items():
            handle = (
                module.register_forward_pre_hook(_at_input(name, record), with_kwargs=True)
                if side == "input"
                else module.register_forward_hook(_at_output(name, record))
            )
            hooks.callback(handle.remove)
        with suppress(_Stopped):
            yield recorded


def _at_input(name: str, record: Callable[[str, Tensor], None]) -> Callable[..., None]:
    return lambda _, args, kwargs: record(name, args[0] if args else kwargs["hidden_states"])


def _at_output(name: str, record: Callable[[str, Tensor], None]) -> Callable[..., None]:
    return lambda _, args, output: record(name, _first(output))


def _first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]
