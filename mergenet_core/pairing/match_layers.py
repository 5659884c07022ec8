"""Which weights of two models do the same work, where their families are built differently.

A norm belongs to what it feeds. On the residual stream of BERT, the norm behind a feed-forward feeds the next layer's
attention; in GPT-2 and Llama the norm before attention belongs to that layer. Of a gated feed-forward, the projection
under the activation does what the only projection of a plain one does. Where groups of queries share keys, keys, values
and the output of attention have axes of their own; without groups they fall into the same heads.
"""

from __future__ import annotations

from dataclasses import replace

from mergenet_core.architectures.structure import LogicalWeight, ModelStructure

RoleInLayer = tuple[str, int | None]
"""A role, and the layer that has it; None outside of layers."""


def roles_to_match(structure: ModelStructure, other: ModelStructure) -> list[tuple[RoleInLayer, LogicalWeight]]:
    """The weights of a model, each with the role and layer by which to find the weight of the other model."""
    return [(_role_to_match(weight, structure, other), weight) for weight in structure.weights]


def _role_to_match(weight: LogicalWeight, structure: ModelStructure, other: ModelStructure) -> RoleInLayer:
    role, layer = weight.role, weight.layer
    if other.family.prenorm and not structure.family.prenorm:
        role, layer = _as_prenorm(role, layer, structure.layers)
    if other.family.gated and not structure.family.gated:
        role = role.replace("ffn.up", "ffn.gate")
    if structure.family.name == "mergenet-cnn" and other.family.name != structure.family.name and layer == 0:
        role, layer = f"stem.{role}", None
    return role, layer


def _as_prenorm(role: str, layer: int | None, layers: int) -> RoleInLayer:
    block, _, parameter = role.rpartition(".")
    if block == "embeddings.norm":
        return f"attention.norm.{parameter}", 0
    if block == "attention.norm":
        return f"ffn.norm.{parameter}", layer
    if block == "ffn.norm" and layer is not None:
        return (f"attention.norm.{parameter}", layer + 1) if layer + 1 < layers else (f"norm.{parameter}", None)
    return role, layer


def with_shared_heads(source: ModelStructure, target: ModelStructure) -> tuple[ModelStructure, ModelStructure]:
    """Give keys the queries' axis and contexts the values' where neither model groups its heads."""
    if any(model.dimensions.key_value_heads != model.dimensions.heads for model in (source, target)):
        return source, target
    return _with_axes_of_heads(source), _with_axes_of_heads(target)


def _with_axes_of_heads(structure: ModelStructure) -> ModelStructure:
    def same(axis: str) -> str:
        return axis.replace("keys.", "queries.").replace("contexts.", "values.")

    return replace(
        structure,
        weights=tuple(
            replace(weight, out=same(weight.out), inp=None if weight.inp is None else same(weight.inp))
            for weight in structure.weights
        ),
    )


def match_layers(source: ModelStructure, target: ModelStructure) -> dict[int, int]:
    """Target layer → source layer, ascending in both.

    In CNNs stage by stage; in MLPs, plain CNNs and vision transformers the first layers of both, one after the other;
    elsewhere evenly spaced with the last layer included.
    """
    if source.stages and target.stages and "mergenet-cnn" not in (source.family.name, target.family.name):
        return _match_stages(source.stages, target.stages)
    if target.kind in ("encoder", "decoder", "fusion") or source.kind != target.kind:
        return _evenly_spaced(source.layers, target.layers)
    return {layer: layer for layer in range(min(source.layers, target.layers))}


def _match_stages(source: tuple[int, ...], target: tuple[int, ...]) -> dict[int, int]:
    matched: dict[int, int] = {}
    source_stages, target_stages = sorted(set(source)), sorted(set(target))
    for neighbours, source_index in _neighbouring_stages(len(source_stages), len(target_stages)):
        stages = {target_stages[index] for index in neighbours}
        target_blocks = [block for block, stage in enumerate(target) if stage in stages]
        source_blocks = [block for block, stage in enumerate(source) if stage == source_stages[source_index]]
        # a stage's first block makes it narrower and wider, so the first goes with the first
        matched[target_blocks[0]] = source_blocks[0]
        for later, source_later in _evenly_spaced(len(source_blocks) - 1, len(target_blocks) - 1).items():
            matched[target_blocks[1 + later]] = source_blocks[1 + source_later]
    return matched


def _neighbouring_stages(source: int, target: int) -> list[tuple[range, int]]:
    """Target stages side by side that go with one source stage; a target of fewer stages skips some of the source's."""
    if target < source:
        return [(range(stage, stage + 1), chosen) for stage, chosen in _evenly_spaced(source, target).items()]
    starts = [-(-stage * target // source) for stage in range(source + 1)]
    return [(range(starts[stage], starts[stage + 1]), stage) for stage in range(source)]


def _evenly_spaced(source: int, target: int) -> dict[int, int]:
    """Target layer → source layer for as many as the shallower has, evenly spaced, the last included."""
    count = min(target, source)
    chosen = [[(2 * (k + 1) * total + count) // (2 * count) - 1 for k in range(count)] for total in (target, source)]
    return dict(zip(*chosen, strict=True))
