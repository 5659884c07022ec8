"""What the parts of a transformer's fit share: both models at the same depth, what is wanted there, least squares.

Legend: n tokens, D the source's stream, d the target's, i inputs, o wanted outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mergenet_core.fitting.context import Boundary, FitContext
from mergenet_core.fitting.gram import Affine, Gram
from mergenet_core.fitting.transformer.layer_walk import LayerWalk, Recorded
from mergenet_core.fitting.transformer.role_weights import Point, RoleWeights
from mergenet_core.fitting.transformer.stream_map import StreamMap, narrower_stream, same_stream
from mergenet_core.fitting.transformer.survey import Survey, survey
from mergenet_core.fitting.transformer.tokens import Tokens

RIDGE = 1e-2
"""Of a regression towards what the stream lacks; a smaller one fits a small pool's texts better, others worse."""
Wanted = Callable[[int, Recorded], Tensor]
"""What a regression fits for the tokens of a chunk, from what was recorded of the target. Shapes: (n, o)."""


class TransformerFit:
    """The state of a fit between two parts."""

    def __init__(self, context: FitContext) -> None:
        self.source, self.target = RoleWeights(context.source), RoleWeights(context.target)
        self.sum_ = context.sum_
        self.tokens = Tokens(context.chunks, context.target.structure)
        self.source_walk = LayerWalk(self.source, [chunk.source for chunk in context.chunks])
        self.target_walk = LayerWalk(self.target, [chunk.target for chunk in context.chunks])
        self.boundaries = matched_boundaries(self.source, self.target)
        last = 2 * self.source.structure.layers + (1 if self.source.has("norm.weight") else 0)
        middles = [self.middle(layer) for layer in range(self.target.structure.layers)]
        places = [*self.boundaries, *middles, *(middle - 1 for middle in middles), last]
        self.survey = survey(self.source, self.source_walk, places, self.tokens.of_source, context.sum_)
        self.stream = _stream_map(self.source, self.target, self.survey)
        self.wanted: list[Tensor] = []
        """For each chunk what the target's stream should be behind the current layer. Shapes: (n, d)."""

    @property
    def width(self) -> int:
        """Of the target's stream."""
        return self.target.structure.dimensions.width

    @property
    def keeps_entries(self) -> bool:
        """Whether the target's stream has each entry of the source's."""
        return self.width >= self.source.structure.dimensions.width

    def layers(self, layer: int) -> list[int]:
        """The source's layers at the depth of one of the target's; the next one where it has none of its own."""
        first, last = self.boundaries[layer] // 2, min(self.boundaries[layer + 1] // 2, self.source.structure.layers)
        return list(range(first, last)) or [first]

    def middle(self, layer: int) -> int:
        """The source's boundary for the stream between attention and feed-forward of a target's layer."""
        return 2 * self.layers(layer)[-1] + 1

    def want(self, boundary: int, chunk: int, h_btD: Tensor) -> Tensor:
        """What the target's tokens should be where the source's stream is `h`. Shapes: (b, t, D) → (n, d)."""
        return self.stream.wanted(boundary, self.tokens.at_target(chunk, h_btD))

    def want_stream(self, boundary: int) -> None:
        """Want the source's stream as it is now, behind the source's last norm if that is the boundary."""
        normed = boundary > 2 * self.source.structure.layers
        norm = self.source.computing("norm.weight") if normed else None
        self.wanted = []
        for chunk, h_btD in enumerate(self.source_walk.streams):
            h_btD = h_btD if norm is None else norm(h_btD.to(self.source.device)).cpu()
            self.wanted.append(self.want(boundary, chunk, h_btD))

    def weights(self, chunk: int) -> Tensor:
        """How much each token counts: long ones less, so that a few do not decide. Shapes: (n)."""
        wanted_nd = self.wanted[chunk].to(self.target.device)
        if not self.source.structure.family.prenorm:
            return wanted_nd.new_ones(len(wanted_nd))
        return 1 / wanted_nd.square().mean(1).clamp_min(1)

    def regress(
        self, role: str, layer: int, wanted: Wanted, *, outputs: int, ridge: float, points: Mapping[str, Point]
    ) -> Affine:
        """The regression on what a module of the target reads, over all processes."""
        module = self.target.computing(f"{role}.weight", layer)
        gram = Gram(self.target.view(f"{role}.weight", layer).shape[1], outputs, self.target.device)
        for chunk in range(len(self.tokens)):
            _, recorded = self.target_walk.run(chunk, layer, {**points, "inputs": (module, "input")}, stop="inputs")
            X_ni = self.tokens.of_target(chunk, recorded["inputs"])
            gram.add(X_ni, wanted(chunk, recorded).to(X_ni), self.weights(chunk))
        return gram.sum_over(self.sum_).solve(ridge, intercept=self.target.has(f"{role}.bias", layer))

    def solve_rest(self, role: str, layer: int, base: Point, sums: Sequence[Tensor]) -> float:
        """Write a projection onto the stream so that it adds what the stream lacks; what is left of that.

        `sums` are what the stream should be before a norm on it, empty where that is what is wanted.
        """

        def rest(chunk: int, recorded: Recorded) -> Tensor:
            return (sums or self.wanted)[chunk].to(recorded["base"]) - self.tokens.of_target(chunk, recorded["base"])

        found = self.regress(role, layer, rest, outputs=self.width, ridge=RIDGE, points={"base": base})
        self.target.write_affine(role, found, layer)
        return found.error

    def fit_norm(self, role: str, layer: int | None = None) -> float:
        """Set gain and bias of a norm, channel by channel; what is left of the wanted.

        Equation: for each channel, the regression of what is wanted on the normalised stream.
        """
        self.target.write(f"{role}.weight", torch.ones(self.width), layer)
        self.target.write(f"{role}.bias", torch.zeros(self.width), layer)
        output: Point = (self.target.computing(f"{role}.weight", layer), "output")
        sums_5d = torch.zeros(5, self.width, dtype=torch.float64, device=self.target.device)
        count = sums_5d.new_zeros(())
        for chunk in range(len(self.tokens)):
            x_nd = self.tokens.of_target(chunk, self._read_norm(chunk, layer, output)).double()
            z_nd, w_n1 = self.wanted[chunk].to(x_nd), self.weights(chunk).double()[:, None]
            products = (x_nd, z_nd, x_nd.square(), x_nd * z_nd, z_nd.square())
            sums_5d += torch.stack([(w_n1 * product_nd).sum(0) for product_nd in products])
            count += w_n1.sum()
        x_d, z_d, xx_d, xz_d, zz_d = self.sum_(sums_5d) / self.sum_(count)
        if not self.target.has(f"{role}.bias", layer):
            x_d, mean_d = torch.zeros_like(x_d), torch.zeros_like(z_d)
        else:
            mean_d = z_d
        gain_d = (xz_d - x_d * mean_d) / (xx_d - x_d.square()).clamp_min(1e-9)
        self.target.write(f"{role}.weight", gain_d, layer)
        self.target.write(f"{role}.bias", mean_d - gain_d * x_d, layer)
        left_d = zz_d - mean_d.square() - gain_d * (xz_d - x_d * mean_d)
        return float(left_d.sum() / (zz_d - z_d.square()).sum().clamp_min(1e-30))

    def left(self) -> float:
        """The share of the wanted stream's variance that the target's stream leaves."""
        sums_3d = torch.zeros(3, self.width, dtype=torch.float64, device=self.target.device)
        count = sums_3d.new_zeros(())
        for chunk, x_btd in enumerate(self.target_walk.streams):
            z_nd = self.wanted[chunk].to(sums_3d)
            w_n1 = self.weights(chunk).to(sums_3d)[:, None]
            x_nd = self.tokens.of_target(chunk, x_btd).to(sums_3d)
            sums_3d += torch.stack([(w_n1 * y).sum(0) for y in ((x_nd - z_nd).square(), z_nd, z_nd.square())])
            count += w_n1.sum()
        left_d, z_d, zz_d = self.sum_(sums_3d) / self.sum_(count)
        return float(left_d.sum() / (zz_d - z_d.square()).sum().clamp_min(1e-30))

    def _read_norm(self, chunk: int, layer: int | None, output: Point) -> Tensor:
        """What a norm writes: of a layer, in the embeddings, or behind the last layer."""
        if layer is not None:
            return self.target_walk.run(chunk, layer, {"norm": output}, stop="norm")[1]["norm"]
        if self.target.has("norm.weight") and output[0] is self.target.computing("norm.weight"):
            normed: Tensor = output[0](self.target_walk.streams[chunk].to(self.target.device))
            return normed
        return self.target_walk.enter(chunk, {"norm": output}, stop="norm")["norm"]

    def boundary(self, layer: int) -> Boundary | None:
        """Where the activations mean the same behind a layer of the target.

        None where that is before the source's first layer, or where the models cut their inputs into other tokens.
        """
        at = self.boundaries[layer + 1]
        streams = zip(self.source_walk.streams, self.target_walk.streams, strict=True)
        if at == 0 or any(h_btD.shape[:2] != x_btd.shape[:2] for h_btD, x_btd in streams):
            return None
        normed = at > 2 * self.source.structure.layers
        return Boundary(
            target=self.target.layer_name(layer),
            source=self.source.module_name("norm.weight") if normed else self.source.layer_name(at // 2 - 1),
            mean_s=self.stream.means[at].float(),
            map_st=(self.stream.P_Dd / self.stream.scales[at]).float(),
            offset_t=torch.zeros(self.width, device=self.stream.P_Dd.device),
        )


def matched_boundaries(source: RoleWeights, target: RoleWeights) -> list[int]:
    """The source's boundary before each layer of the target and behind the last one, at the same relative depth.

    A target with norms on its stream ends behind the source's last norm.
    """
    layers, count = source.structure.layers, target.structure.layers
    found = [2 * (layer * layers // count) for layer in range(count + 1)]
    if source.has("norm.weight") and not target.structure.family.prenorm:
        found[-1] += 1
    return found


def _stream_map(source: RoleWeights, target: RoleWeights, found: Survey) -> StreamMap:
    width, layers = target.structure.dimensions.width, source.structure.layers
    if width >= source.structure.dimensions.width:
        return same_stream(found.streams, source.structure.dimensions.width, width)
    of_one_scale = [at for at in found.streams if at <= 2 * layers] if target.structure.family.prenorm else []
    return narrower_stream(found.streams, width, centred=target.has("attention.out.bias", 0), of_one_scale=of_one_scale)
