"""The anchored operator: target units re-made as mixtures of the source's, by attention along axes that mean the same.

Each transfer walks through the target in the order of its data. Where an axis is first written, attention between the
target's units and the source's makes its map P; from there the map is carried: the next weight's source is expressed
in target units before it is attended to. One map serves the whole residual stream; attention heads move whole.

All of it is told in the source's factors Y = B A, so that a weight that is spread over processes is only ever asked for
products with r columns, and every process makes the same maps from them.

Shape suffixes: t target units, l source units, d shared coordinates of both, r rank, i input units, p kernel positions,
v vocabulary rows; ^ (hat) RMS-normalised rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mergenet_core.architectures.axes import INPUT_EMBEDDINGS
from mergenet_core.pairing.result import Pairing, WeightPair
from mergenet_core.spec.job import TransferSpec
from mergenet_core.transfer.maps import anchored_map
from mergenet_core.transfer.methods.anchored_step import Factors, Moved, UnitMap, asked_of, move, products
from mergenet_core.transfer.methods.project import Projection
from mergenet_core.transfer.reencode import factorize, source_factors
from mergenet_core.transfer.shards import Shard, together
from mergenet_core.transfer.views import WeightView, view_of


class Anchored:
    """Learned attention maps between a target's units and a frozen source's, re-made at every transfer."""

    def __init__(
        self,
        source: Mapping[str, Tensor],
        target: Mapping[str, Shard],
        pairing: Pairing,
        spec: TransferSpec,
        seed: int,
    ) -> None:
        self._pairing = pairing
        self._pairs = [pair for pair in pairing.pairs if pair.rank is not None]
        self._views = {pair.target: WeightView(target[pair.target], pair.form) for pair in self._pairs}
        # a residual stream starts from the projection, and its source speaks the target's coordinates from then on
        self.start = Projection(source, pairing) if pairing.basis is not None else None
        self.factors: dict[str, Tensor] = {}
        self.parameters: dict[str, nn.Parameter] = {}
        for pair in self._pairs:
            self._take_factors(pair, source)
            self._add_parameters(pair, math.atanh(spec.gate))
        self._waves = _waves(self._pairs, [name[:-4] for name in self.parameters if name.endswith(".key")])
        self._moved: dict[str, Moved] = {}
        self._moves: dict[str, Factors] = {}
        """What made them, in the graph that `backward` goes through; a weight that was moved does not hold it."""

    def _take_factors(self, pair: WeightPair, source: Mapping[str, Tensor]) -> None:
        assert pair.rank is not None
        like = self._views[pair.target].shard.held().flat
        if self.start is None:
            self._keep_factors(pair, *source_factors(source, pair, like))
        else:
            self._keep_factors(pair, *factorize(view_of(self.start.weight(pair).to(like), pair.form), pair.rank))

    def _keep_factors(self, pair: WeightPair, B: Tensor, A: Tensor) -> None:
        if pair.form == "embedding":  # its rows are shared, so B is the coordinates and only the width is mapped
            coordinates_vr, R_rr = torch.linalg.qr(B)
            self.factors[f"{pair.target}.coordinates"] = coordinates_vr
            B, A = (R_rr @ A).T, torch.eye(len(R_rr)).to(B)
        self.factors[f"{pair.target}.B"], self.factors[f"{pair.target}.A"] = B, A

    def _add_parameters(self, pair: WeightPair, gate: float) -> None:
        A = self.factors[f"{pair.target}.A"]
        columns = A.shape[1] if pair.form == "embedding" else self._views[pair.target].shape[1]
        axis = _unit_axis(pair)
        if self._makes_map(pair) and f"{axis}.key" not in self.parameters:
            self.parameters[f"{axis}.key"] = nn.Parameter(A.new_zeros(A.shape[0], columns))
        self.parameters[f"{pair.target}.value"] = nn.Parameter(A.new_zeros(A.shape[0], columns))
        self.parameters[f"{pair.target}.gate"] = nn.Parameter(A.new_tensor(gate))

    def _makes_map(self, pair: WeightPair) -> bool:
        """Whether the pair's unit axis gets a map of its own when it is the first to meet it."""
        axis = _unit_axis(pair)
        if axis.startswith("values."):  # heads move as they do for queries and keys
            return f"queries.{axis.rpartition('.')[2]}.key" not in self.parameters
        if self._pairing.axes[axis].basis is not None:
            return pair.role in INPUT_EMBEDDINGS
        return not self._pairing.axes[axis].anchored

    def retake(self, source: Mapping[str, Tensor]) -> None:
        """Take another state of the source, its axes mapped as they were at the start."""
        if self.start is not None:
            self.start.retell(source)
        for pair in self._pairs:
            self._take_factors(pair, source)

    def refresh(self, factors: Callable[[WeightPair], tuple[Tensor, Tensor]]) -> None:
        """Take the factors of a source that has learned since, its axes mapped as they were at the start."""
        for pair in self._pairs:
            B, A = factors(pair)
            self._keep_factors(pair, *((B, A) if self.start is None else self.start.carried(pair, B, A)))

    def write(self) -> None:
        """One transfer: W ← X', the graph of the maps kept for `backward`."""
        maps: dict[str, UnitMap] = {}
        self._moved = self._unmoved()
        for wave in self._waves:
            self._move(wave, maps)
        for pair in self._pairs:
            moved = self._moved[pair.target]
            before_td = moved.view.shard.held().flat.clone() if pair.form == "embedding" else None
            moved.write_()
            if before_td is not None:
                change_td = (moved.view.shard.held().flat - before_td).view(moved.view.shape)
                self._views[pair.target].add_(self.factors[f"{pair.target}.coordinates"], change_td.T)

    def backward(self) -> None:
        """Take the loss's gradient at X' through the operator, to the target's weights and to the adapter."""
        embeddings = [pair.target for pair in self._pairs if pair.form == "embedding"]
        with together():
            at_embeddings = {
                name: self._views[name].grad_right(self.factors[f"{name}.coordinates"]).T for name in embeddings
            }
            found = {name: moved.gradient_products() for name, moved in self._moved.items() if name not in embeddings}
        for name, G_td in at_embeddings.items():
            self._moved[name].view.shard.write_gradient_(G_td.contiguous())
            found[name] = self._moved[name].gradient_products()
        outputs = [factor for name in self._moved for factor in self._moves[name]]
        gradients = [part for name, moved in self._moved.items() for part in moved.gradients(*found[name])]
        squares = [moved.squares_t for moved in self._moved.values()]
        inputs = [*squares, *self.parameters.values()]
        given = torch.autograd.grad(outputs, inputs, gradients, allow_unused=True)
        for moved, gradient in zip(self._moved.values(), given, strict=False):
            moved.give_gradient_(gradient)
        for parameter, gradient in zip(self.parameters.values(), given[len(squares) :], strict=True):
            parameter.grad = gradient
        for name, G_td in at_embeddings.items():
            change_td = self._moved[name].view.shard.gradient().view(G_td.shape) - G_td
            self._views[name].grad_combine_(None, None, self.factors[f"{name}.coordinates"], change_td.T)
        self._moved, self._moves = {}, {}

    def after_step(self) -> None:
        """Nothing: all that the adapter learns from has come with the loss's gradient."""

    def _unmoved(self) -> dict[str, Moved]:
        """The weights as they are; an embedding's units are its columns, told by their coordinates in a copy."""
        with together():
            found = {
                pair.target: view.right(self.factors[f"{pair.target}.coordinates"])
                if pair.form == "embedding"
                else view.squares()
                for pair, view in ((pair, self._views[pair.target]) for pair in self._pairs)
            }
        unmoved = {}
        for pair in self._pairs:
            view, told = self._views[pair.target], found[pair.target]
            if pair.form == "embedding":
                view = view_of(told.T.contiguous())
                told = view.squares()
            unmoved[pair.target] = Moved(view, told)
        return unmoved

    def _move(self, wave: Sequence[WeightPair], maps: dict[str, UnitMap]) -> None:
        """The moves of pairs whose inputs have their maps; where a unit axis gets a map, it is left in `maps`."""
        units = [self._source_units(pair, maps) for pair in wave]
        values = [self.parameters[f"{pair.target}.value"] for pair in wave]
        keys: list[Tensor | None] = []
        mapped = set(maps)
        for pair in wave:
            axis = _unit_axis(pair)
            known = axis in mapped or _twin(axis) in mapped
            keys.append(None if known else self.parameters.get(f"{axis}.key"))
            mapped |= {axis} if known or keys[-1] is not None else set()
        weights = [self._moved[pair.target] for pair in wave]
        asked = [asked_of(A_rd, value, key) for (_, A_rd), value, key in zip(units, values, keys, strict=True)]
        found = products(weights, asked)
        for pair, moved, (B_lr, A_rd), product, value, key in zip(
            wave, weights, units, found, values, keys, strict=True
        ):
            axis = _unit_axis(pair)
            heads = self._pairing.axes[axis].heads
            width = 1 if heads is None else self._pairing.axes[axis].target_size // heads[1]
            self._moves[pair.target], unit_map = move(
                moved,
                B_lr,
                A_rd,
                product,
                value_rd=value,
                gate=self.parameters[f"{pair.target}.gate"],
                key_rd=key,
                unit_map=maps.get(_twin(axis) or axis, maps.get(axis)),
                width=width,
                filled=None if key is None else self._filled(axis, width),
            )
            if unit_map is not None:
                maps[axis] = unit_map

    def _filled(self, axis: str, width: int) -> Tensor | None:
        """The heads of a wider target that the projection fills, so that units which are none are not mapped."""
        if self.start is None:
            return None
        filled_h = torch.unique(self.start.filled(axis) // width)
        return None if len(filled_h) * width == self._pairing.axes[axis].target_size else filled_h

    def _source_units(self, pair: WeightPair, maps: Mapping[str, UnitMap]) -> tuple[Tensor, Tensor]:
        """The source's units B A, their coordinates those of the target."""
        B_lr, A_rd = self.factors[f"{pair.target}.B"], self.factors[f"{pair.target}.A"]
        if pair.form == "embedding":
            return B_lr, A_rd
        projected = self.start is not None
        if pair.inp is not None and pair.inp in maps:
            units = (pair.target_shape if projected else pair.source_shape)[1]
            A_irp = A_rd.view(len(A_rd), units, -1).transpose(0, 1)
            mixed_trp = maps[pair.inp].mixed(A_irp.flatten(1)).view(-1, *A_irp.shape[1:])
            A_rd = mixed_trp.transpose(0, 1).flatten(1)
        assert pair.out is not None
        out = self._pairing.axes[pair.out]
        if out.anchored and not projected:
            rows = anchored_map(out)
            places_tr = B_lr.new_zeros((out.target_size, B_lr.shape[1]))
            places_tr[rows.cover_t] = rows.apply(B_lr, 0)
            B_lr = places_tr
        return B_lr, A_rd


def _unit_axis(pair: WeightPair) -> str:
    """The axis whose entries are the pair's units: its rows, for an embedding its columns."""
    axis = pair.inp if pair.form == "embedding" else pair.out
    assert axis is not None
    return axis


def _twin(axis: str) -> str | None:
    """The axis whose heads those of values move with."""
    return f"queries.{axis.rpartition('.')[2]}" if axis.startswith("values.") else None


def _waves(pairs: Sequence[WeightPair], own: Sequence[str]) -> list[list[WeightPair]]:
    """The pairs in groups of which none waits for a map that another of its group makes: few exchanges move them all.

    `own` are the axes that get a map of their own, from the first pair whose units they are.
    """
    waves: list[list[WeightPair]] = []
    mapped: set[str] = set()
    waiting = list(pairs)
    while waiting:
        wave: list[WeightPair] = []
        made: set[str] = set()
        to_be_made: set[str] = set()
        for pair in waiting:
            axis = _unit_axis(pair)
            gets_map = (axis in own or _twin(axis) in own) and axis not in mapped
            held_up = to_be_made - made
            if pair.inp not in to_be_made and axis not in held_up and _twin(axis) not in held_up:
                wave.append(pair)
                made |= {axis} if gets_map else set()
            to_be_made |= {axis} if gets_map else set()
        waves.append(wave)
        mapped |= made
        waiting = [pair for pair in waiting if all(pair is not one for one in wave)]
    return waves
