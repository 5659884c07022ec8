"""The embeddings of a target: a row for each word or patch, so that the stream starts where the source's does.

Legend: v rows of a table, D the source's stream, d the target's, e embeddings that are narrower than the stream,
p places of a picture, x entries of a patch, b images, n tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import unfold

from mergenet_core.fitting.gram import Gram
from mergenet_core.fitting.transformer.role_weights import RoleWeights
from mergenet_core.fitting.transformer.state import TransformerFit

_RIDGE = 1e-3


def solve_embeddings(fit: TransformerFit) -> float:
    """Write the target's embeddings; what is left of the wanted stream before the first layer."""
    fit.want_stream(0)
    if fit.target.structure.kind == "vit":
        _solve_patches(fit)
    else:
        _write_tables(fit)
    if fit.target.has("embeddings.norm.weight") and not fit.target.has("embeddings.project.weight"):
        fit.fit_norm("embeddings.norm")
    return enter_embeddings(fit)


def enter_embeddings(fit: TransformerFit) -> float:
    """Stand before the first layer of a target whose embeddings are solved; what is left of the wanted stream."""
    fit.want_stream(0)
    fit.target_walk.start()
    return fit.left()


def _write_tables(fit: TransformerFit) -> None:
    """Words as the source's embeddings make them at the mean position; positions and segments as they differ.

    A norm divides each sum by its own deviation; for positions and segments it is the mean one.
    Equation: word z(norm(E_v + p̄ + s_0)), position (p − p̄) G P / σ, segment (s − s_0) G P / σ, with p̄ the mean position
    of the pool and G the norm's gain over the mean deviation.
    """
    source, target, stream = fit.source, fit.target, fit.stream
    E_vD = source.view("embeddings.word").double()
    positions_vD = _table(source, "embeddings.position", E_vD)
    segments_vD = _table(source, "embeddings.segment", E_vD)
    position_D = _mean_position(fit, positions_vD)
    sums_vD = E_vD + position_D + segments_vD[0]
    words_vd = stream.wanted(0, _after_norm(source, sums_vD))
    first, own_first = _first_position(source), _first_position(target)
    positions_vd = _differences(fit, positions_vD[first:] - position_D, sums_vD)
    segments_vd = _differences(fit, segments_vD - segments_vD[0], sums_vD)
    if target.has("embeddings.project.weight"):
        words_vd, positions_vd, segments_vd = _narrow(fit, words_vd, positions_vd, segments_vd)
    _write_rows(target, "embeddings.word", words_vd)
    if source.has("embeddings.position"):
        _write_rows(target, "embeddings.position", positions_vd, own_first)
    _write_rows(target, "embeddings.segment", segments_vd)


def _table(source: RoleWeights, role: str, like: Tensor) -> Tensor:
    """A table of embeddings; one row of zeros where the model has none."""
    return source.view(role).double() if source.has(role) else torch.zeros_like(like[:1])


def _first_position(model: RoleWeights) -> int:
    """The row of the first token's position: RoBERTa counts from behind the padding's."""
    return 2 if model.structure.family.name == "roberta" else 0


def _mean_position(fit: TransformerFit, positions_vD: Tensor) -> Tensor:
    """The mean of the positions over the pool's tokens. Shapes: (v, D) → (D)."""
    counts_v = positions_vD.new_zeros(len(positions_vD))
    first = min(_first_position(fit.source), len(positions_vD) - 1)
    for chunk in range(len(fit.tokens)):
        counts_t = fit.tokens.counts(chunk).to(counts_v)[: len(counts_v) - first]
        counts_v[first : first + len(counts_t)] += counts_t
    counts_v = fit.sum_(counts_v)
    return counts_v @ positions_vD / counts_v.sum()


def _after_norm(source: RoleWeights, sums_ve: Tensor) -> Tensor:
    """What the source's stream starts with. Shapes: (v, e) → (v, D)."""
    found = sums_ve
    for role in ("embeddings.norm.weight", "embeddings.project.weight"):
        if source.has(role):
            module = source.computing(role)
            found = module(found.to(source.view(role))).double()
    return found


def _differences(fit: TransformerFit, rows_ve: Tensor, sums_ve: Tensor) -> Tensor:
    """How small changes of the embeddings' sum change the target's stream. Shapes: (v, e) → (v, d)."""
    source = fit.source
    if source.has("embeddings.norm.weight"):
        gain_e = source.view("embeddings.norm.weight").double()
        rows_ve = (rows_ve - rows_ve.mean(1, keepdim=True)) * gain_e / sums_ve.std(1, correction=0).mean()
    if source.has("embeddings.project.weight"):
        rows_ve = rows_ve @ source.view("embeddings.project.weight").double().T
    return rows_ve @ fit.stream.P_Dd.to(rows_ve) / fit.stream.scales[0]


def _narrow(fit: TransformerFit, *tables_vd: Tensor) -> list[Tensor]:
    """Tables at the width of embeddings that are narrower than the stream; their projection onto it is written.

    Equation: with V the top eigenvectors of the words' covariance, tables T V and the projection Vᵀ.
    """
    width = fit.target.view("embeddings.project.weight").shape[1]
    words_vd = tables_vd[0]
    V_de = torch.linalg.eigh(torch.cov(words_vd.T)).eigenvectors.flip(1)[:, :width]
    fit.target.write("embeddings.project.weight", V_de)
    fit.target.write("embeddings.project.bias", torch.zeros(fit.width))
    return [table_vd @ V_de for table_vd in tables_vd]


def _write_rows(target: RoleWeights, role: str, rows_vd: Tensor, first: int = 0) -> None:
    """Write as many rows as both tables have; other rows stay."""
    if target.has(role):
        count = min(len(rows_vd), len(target.view(role)) - first)
        target.write(role, rows_vd[:count], rows=slice(first, first + count))


def _solve_patches(fit: TransformerFit) -> None:
    """Regress what is wanted at each patch on its pixels; places have what their mean lacks, the class token its mean.

    The source's own filters are taken where both models cut images into the same patches.
    """
    target = fit.target
    filters = target.view("embeddings.patch")
    side = tuple(filters.shape[2:])
    X_bpx = [
        unfold(fit.tokens.pixels(chunk).to(target.device), side, stride=side).transpose(1, 2).double()
        for chunk in range(len(fit.tokens))
    ]
    Z_btd = [fit.wanted[chunk].double().view(len(X_px), -1, fit.width).to(X_px) for chunk, X_px in enumerate(X_bpx)]
    taken = _shared_filters(fit)
    if taken is None:
        gram = Gram(X_bpx[0].shape[2], fit.width, target.device)
        for x_bpx, z_btd in zip(X_bpx, Z_btd, strict=True):
            gram.add(x_bpx.flatten(0, 1), z_btd[:, 1:].flatten(0, 1))
        taken = gram.sum_over(fit.sum_).solve(_RIDGE).W_io.T
    sum_td = torch.stack(
        [
            torch.cat([z_btd[:, :1], z_btd[:, 1:] - x_bpx @ taken.T], dim=1).sum(0)
            for x_bpx, z_btd in zip(X_bpx, Z_btd, strict=True)
        ]
    ).sum(0)
    count = torch.tensor(float(sum(len(x_bpx) for x_bpx in X_bpx)), dtype=torch.float64, device=target.device)
    rest_td = fit.sum_(sum_td) / fit.sum_(count)
    target.write("embeddings.patch", taken.view(filters.shape))
    target.write("embeddings.patch.bias", torch.zeros(fit.width))
    target.write("embeddings.class", torch.zeros(1, fit.width))
    _write_rows(target, "embeddings.place", rest_td)


def _shared_filters(fit: TransformerFit) -> Tensor | None:
    source, target = fit.source, fit.target
    if source.structure.kind != "vit" or source.has("embeddings.norm.weight"):
        return None
    W_Dx = source.view("embeddings.patch")
    if W_Dx.shape[1:] != target.view("embeddings.patch").shape[1:]:
        return None
    return fit.stream.P_Dd.T @ W_Dx.flatten(1).to(fit.stream.P_Dd) / fit.stream.scales[0]
