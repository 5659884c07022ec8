"""The anchored operator `anchored`: target units become mixtures of source units, along axes with a shared meaning.

Each transfer goes through the target in the order of its data. Where an axis is first written, attention between the
target's units and the source's gives its map P (equations 1 to 4 in `anchored_step`). From there the map is carried on:

5. The next layer's source rows are expressed in target units before they are attended to: Y₂ ← Y₂ Pᵀ.

One map serves the whole residual stream, and the rows of an attention head stay together. Of an embedding, whose rows
both models share, only the columns are mapped: W = U R with orthonormal columns U that stay as they are.

The paper's adapter (`lpka`) mixes factors on axes that need not correspond; here each map is anchored where both models
agree on what an axis means. Everything is computed from the source's factors Y = B A, so a weight that is spread over
processes is only multiplied by r columns, and every process computes the same maps.

Shape suffixes: t target units, l source units, d coordinates that both share, r rank, i input units, p kernel
positions, v vocabulary rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mergenet_core.architectures.axes import INPUT_EMBEDDINGS
from mergenet_core.pairing.result import WeightPair
from mergenet_core.transfer.axis_maps import RowUpdate, anchored_map
from mergenet_core.transfer.methods.anchored_step import (
    HeadLayout,
    SourceUnits,
    StepParameters,
    UnitMap,
    UpdateFactors,
    WeightUpdate,
    anchored_step,
    key_products,
)
from mergenet_core.transfer.methods.method import Factors, MethodContext
from mergenet_core.transfer.methods.project import Projection
from mergenet_core.transfer.reencode import factorize, source_factors
from mergenet_core.transfer.shards.exchange import batched_sums
from mergenet_core.transfer.views import WeightView, view_of


class Anchored:
    """Learned attention maps between a target's units and a source's, computed anew at every transfer."""

    def __init__(self, context: MethodContext) -> None:
        pairing = context.pairing
        self._pairing = pairing
        self._pairs = [pair for pair in pairing.pairs if pair.rank is not None]
        self._views = {pair.target: WeightView(context.target[pair.target], pair.form) for pair in self._pairs}
        # a residual stream starts from the projection; its source is then given in the target's coordinates
        self._projection = Projection(context.source, pairing) if pairing.basis is not None else None
        self.factors: dict[str, Tensor] = {}
        self.parameters: dict[str, nn.Parameter] = {}
        for pair in self._pairs:
            self._set_source_weight(pair, context.source)
            self._add_parameters(pair, math.atanh(context.spec.gate))
        mapped_axes = [name.removesuffix(".key") for name in self.parameters if name.endswith(".key")]
        self.batches = independent_batches(self._pairs, mapped_axes)
        self._updates: dict[str, WeightUpdate] = {}
        self._update_factors: dict[str, UpdateFactors] = {}
        """The updates' factors with their graph, for `backward`; `WeightUpdate` has them detached."""

    @property
    def start(self) -> Iterable[RowUpdate]:
        """The projection, where a residual stream runs through the model."""
        return self._projection if self._projection is not None else ()

    def _set_source_weight(self, pair: WeightPair, source: Mapping[str, Tensor]) -> None:
        assert pair.rank is not None
        like = self._views[pair.target].shard.local().flat
        if self._projection is None:
            self._set_factors(pair, *source_factors(source, pair, like))
        else:
            projected = self._projection.weight(pair).to(like)
            self._set_factors(pair, *factorize(view_of(projected, pair.form), pair.rank))

    def _set_factors(self, pair: WeightPair, B: Tensor, A: Tensor) -> None:
        if pair.form == "embedding":  # its rows are shared: B gives their coordinates, and only the columns are mapped
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
        """Whether the pair makes the map of its unit axis, if it is the first with that axis."""
        axis = _unit_axis(pair)
        if axis.startswith("values."):  # the heads of values move with those of queries and keys
            return f"{_query_axis(axis)}.key" not in self.parameters
        if self._pairing.axes[axis].basis is not None:
            return pair.role in INPUT_EMBEDDINGS
        return not self._pairing.axes[axis].anchored

    def set_source_weights(self, source: Mapping[str, Tensor]) -> None:
        """Go on with another state of the source's weights; the projection's maps stay as they were at the start."""
        if self._projection is not None:
            self._projection.set_source_weights(source)
        for pair in self._pairs:
            self._set_source_weight(pair, source)

    def set_source_factors(self, factors: Callable[[WeightPair], Factors]) -> None:
        """Go on with the current factors of a source that is still learning; the projection's maps stay."""
        for pair in self._pairs:
            B, A = factors(pair)
            if self._projection is not None:
                B, A = self._projection.project_factors(pair, B, A)
            self._set_factors(pair, B, A)

    def write(self) -> None:
        """One transfer: W ← X'. The graph of the maps is kept for `backward`."""
        maps: dict[str, UnitMap] = {}
        self._updates = self._new_updates()
        for batch in self.batches:
            self._step(batch, maps)
        for pair in self._pairs:
            update = self._updates[pair.target]
            before_td = update.view.shard.local().flat.clone() if pair.form == "embedding" else None
            update.write_()
            if before_td is not None:
                change_td = (update.view.shard.local().flat - before_td).view(update.view.shape)
                self._views[pair.target].add_(self.factors[f"{pair.target}.coordinates"], change_td.T)

    def backward(self) -> None:
        """Propagate the loss's gradient at X' through the operator, to the target's weights and to the adapter."""
        embeddings = [pair.target for pair in self._pairs if pair.form == "embedding"]
        with batched_sums():
            at_embeddings = {
                name: self._views[name].grad_right(self.factors[f"{name}.coordinates"]).T for name in embeddings
            }
            products = {
                name: update.gradient_products() for name, update in self._updates.items() if name not in embeddings
            }
        for name, G_td in at_embeddings.items():
            self._updates[name].view.shard.write_gradient_(G_td.contiguous())
            products[name] = self._updates[name].gradient_products()
        outputs = [factor for name in self._updates for factor in self._update_factors[name]]
        output_gradients = [
            gradient for name, update in self._updates.items() for gradient in update.factor_gradients(products[name])
        ]
        squares = [update.squares_t for update in self._updates.values()]
        inputs = [*squares, *self.parameters.values()]
        gradients = torch.autograd.grad(outputs, inputs, output_gradients, allow_unused=True)
        for update, gradient in zip(self._updates.values(), gradients, strict=False):
            update.write_gradient_(gradient)
        for parameter, gradient in zip(self.parameters.values(), gradients[len(squares) :], strict=True):
            parameter.grad = gradient
        for name, G_td in at_embeddings.items():
            change_td = self._updates[name].view.shard.gradient().view(G_td.shape) - G_td
            self._views[name].grad_combine_(None, None, self.factors[f"{name}.coordinates"], change_td.T)
        self._updates, self._update_factors = {}, {}

    def after_step(self) -> None:
        """Nothing: `backward` has given the adapter its gradient."""

    def _new_updates(self) -> dict[str, WeightUpdate]:
        """An update of each weight; an embedding's units are its columns, by their coordinates in a small copy."""
        with batched_sums():
            results = {
                pair.target: view.right(self.factors[f"{pair.target}.coordinates"])
                if pair.form == "embedding"
                else view.squares()
                for pair, view in ((pair, self._views[pair.target]) for pair in self._pairs)
            }
        updates = {}
        for pair in self._pairs:
            view, squares_t = self._views[pair.target], results[pair.target]
            if pair.form == "embedding":
                view = view_of(results[pair.target].T.contiguous())
                squares_t = view.squares()
            updates[pair.target] = WeightUpdate(view, squares_t)
        return updates

    def _step(self, batch: Sequence[WeightPair], maps: dict[str, UnitMap]) -> None:
        """Set the updates of pairs whose input axes have their maps in `maps`; the maps that they make are added."""
        units = [self._source_units(pair, maps) for pair in batch]
        parameters = []
        mapped = set(maps)
        for pair in batch:
            axis = _unit_axis(pair)
            has_map = axis in mapped or _query_axis(axis) in mapped
            key = None if has_map else self.parameters.get(f"{axis}.key")
            mapped |= {axis} if has_map or key is not None else set()
            value, gate = (self.parameters[f"{pair.target}.{name}"] for name in ("value", "gate"))
            parameters.append(StepParameters(value, gate, key))
        updates = [self._updates[pair.target] for pair in batch]
        rows = [own.product_rows(source.A_rd) for own, source in zip(parameters, units, strict=True)]
        products = key_products(updates, rows)
        for pair, update, source, product, own in zip(batch, updates, units, products, parameters, strict=True):
            axis = _unit_axis(pair)
            self._update_factors[pair.target], unit_map = anchored_step(
                update,
                source,
                product,
                own,
                unit_map=maps.get(_query_axis(axis) or axis, maps.get(axis)),
                heads=self._head_layout(axis, makes_map=own.key_rd is not None),
            )
            if unit_map is not None:
                maps[axis] = unit_map

    def _head_layout(self, axis: str, *, makes_map: bool) -> HeadLayout:
        """The heads of a unit axis; of a wider target only those that the projection fills are mapped."""
        heads, size = self._pairing.axes[axis].heads, self._pairing.axes[axis].target_size
        width = 1 if heads is None else size // heads[1]
        if self._projection is None or not makes_map:
            return HeadLayout(width)
        filled_h = torch.unique(self._projection.filled(axis) // width)
        return HeadLayout(width, None if len(filled_h) * width == size else filled_h)

    def _source_units(self, pair: WeightPair, maps: Mapping[str, UnitMap]) -> SourceUnits:
        """The source's units B A, in the target's coordinates.

        Equation: 5 of this module's docstring, applied to A.
        """
        B_lr, A_rd = self.factors[f"{pair.target}.B"], self.factors[f"{pair.target}.A"]
        if pair.form == "embedding":
            return SourceUnits(B_lr, A_rd)
        projected = self._projection is not None
        if pair.inp is not None and pair.inp in maps:
            inputs = (pair.target_shape if projected else pair.source_shape)[1]
            A_irp = A_rd.view(len(A_rd), inputs, -1).transpose(0, 1)
            mixed_trp = maps[pair.inp].mix(A_irp.flatten(1)).view(-1, *A_irp.shape[1:])
            A_rd = mixed_trp.transpose(0, 1).flatten(1)
        assert pair.out is not None
        out = self._pairing.axes[pair.out]
        if out.anchored and not projected:
            rows = anchored_map(out)
            B_tr = B_lr.new_zeros((out.target_size, B_lr.shape[1]))
            B_tr[rows.cover_t] = rows.apply(B_lr, 0)
            B_lr = B_tr
        return SourceUnits(B_lr, A_rd)


def _unit_axis(pair: WeightPair) -> str:
    """The axis of the pair's units: its rows; for an embedding, its columns."""
    axis = pair.inp if pair.form == "embedding" else pair.out
    assert axis is not None
    return axis


def _query_axis(axis: str) -> str | None:
    """The query axis that shares its heads with an axis of values."""
    return f"queries.{axis.rpartition('.')[2]}" if axis.startswith("values.") else None


def independent_batches(pairs: Sequence[WeightPair], mapped_axes: Sequence[str]) -> list[list[WeightPair]]:
    """Batches in which no pair needs a map made in the same batch; one exchange each.

    `mapped_axes` are the axes that get a map of their own, made by the first pair whose units they are.
    """
    batches: list[list[WeightPair]] = []
    mapped: set[str] = set()
    remaining = list(pairs)
    while remaining:
        batch: list[WeightPair] = []
        made_here: set[str] = set()
        to_be_made: set[str] = set()
        for pair in remaining:
            axis = _unit_axis(pair)
            makes_map = (axis in mapped_axes or _query_axis(axis) in mapped_axes) and axis not in mapped
            made_later = to_be_made - made_here
            if pair.inp not in to_be_made and axis not in made_later and _query_axis(axis) not in made_later:
                batch.append(pair)
                made_here |= {axis} if makes_map else set()
            to_be_made |= {axis} if makes_map else set()
        batches.append(batch)
        mapped |= made_here
        remaining = [pair for pair in remaining if all(pair is not done for done in batch)]
    return batches
