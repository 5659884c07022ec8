"""Which parts of two anatomies do the same work, where their families are built otherwise.

A norm belongs to what it feeds: on the residual stream of BERT, the norm behind a feed-forward feeds the next layer's
attention; before attention, as in GPT-2 and Llama, it stands in that layer. Of a gated feed-forward, the projection
under the activation does what a plain one's only projection does. Attention whose keys are shared by groups of queries
has axes of its own for keys, values and what attention makes of them; without groups they are cut alike.
"""

from __future__ import annotations

from dataclasses import replace

from mergenet_core.architectures.structure import LogicalWeight, ModelStructure

Place = tuple[str, int | None]
"""A role and the layer it is played in."""


def roles_to_match(structure: ModelStructure, other: ModelStructure) -> list[tuple[Place, LogicalWeight]]:
    """The parts of a model, each with the place by which the other model's part is found."""
    return [(_place(part, structure, other), part) for part in structure.weights]


def _place(part: LogicalWeight, structure: ModelStructure, other: ModelStructure) -> Place:
    role, layer = part.role, part.layer
    if other.family.prenorm and not structure.family.prenorm:
        role, layer = _as_prenorm(role, layer, structure.layers)
    if other.family.gated and not structure.family.gated:
        role = role.replace("ffn.up", "ffn.gate")
    if structure.family.name == "mergenet-cnn" and other.family.name != structure.family.name and layer == 0:
        role, layer = f"stem.{role}", None
    return role, layer


def _as_prenorm(role: str, layer: int | None, layers: int) -> Place:
    block, _, said = role.rpartition(".")
    if block == "embeddings.norm":
        return f"attention.norm.{said}", 0
    if block == "attention.norm":
        return f"ffn.norm.{said}", layer
    if block == "ffn.norm" and layer is not None:
        return (f"attention.norm.{said}", layer + 1) if layer + 1 < layers else (f"norm.{said}", None)
    return role, layer


def with_shared_heads(theirs: ModelStructure, ours: ModelStructure) -> tuple[ModelStructure, ModelStructure]:
    """Give keys the queries' axis and contexts the values' where neither model groups its heads."""
    if any(structure.dimensions.key_value_heads != structure.dimensions.heads for structure in (theirs, ours)):
        return theirs, ours

    def folded(axis: str | None) -> str | None:
        return axis and axis.replace("keys.", "queries.").replace("contexts.", "values.")

    return tuple(  # type: ignore[return-value]
        replace(
            structure,
            weights=tuple(
                replace(part, out=folded(part.out) or "", inp=folded(part.inp)) for part in structure.weights
            ),
        )
        for structure in (theirs, ours)
    )


def match_layers(theirs: ModelStructure, ours: ModelStructure) -> dict[int, int]:
    """Target layer → source layer, in order: stage by stage in a CNN, along a chain consecutive from the input.

    Elsewhere evenly spaced with the last included, a vision transformer's from the input on.
    """
    if theirs.stages and ours.stages and "mergenet-cnn" not in (theirs.family.name, ours.family.name):
        matched = {}
        own, others = sorted(set(ours.stages)), sorted(set(theirs.stages))
        for mine, other in _runs(len(own), len(others)):
            names = {own[stage] for stage in mine}
            blocks = [layer for layer, stage in enumerate(ours.stages) if stage in names]
            sources = [layer for layer, stage in enumerate(theirs.stages) if stage == others[other]]
            # a stage's first block makes it narrower and wider, so first goes with first
            matched[blocks[0]] = sources[0]
            for place, source in _spread(len(blocks) - 1, len(sources) - 1).items():
                matched[blocks[1 + place]] = sources[1 + source]
        return matched
    if ours.kind in ("encoder", "decoder", "fusion") or theirs.kind != ours.kind:
        return _spread(ours.layers, theirs.layers)
    return {layer: layer for layer in range(min(theirs.layers, ours.layers))}


def _runs(mine: int, theirs: int) -> list[tuple[range, int]]:
    """Neighbouring stages of the target that go with one of the source; a target of fewer stages skips the source's."""
    if mine < theirs:
        return [(range(stage, stage + 1), source) for stage, source in _spread(mine, theirs).items()]
    starts = [-(-source * mine // theirs) for source in range(theirs + 1)]
    return [(range(starts[source], starts[source + 1]), source) for source in range(theirs)]


def _spread(mine: int, theirs: int) -> dict[int, int]:
    """As many of one as of the other, evenly spaced, the last included."""
    count = min(mine, theirs)
    chosen = [[(2 * (k + 1) * total + count) // (2 * count) - 1 for k in range(count)] for total in (mine, theirs)]
    return dict(zip(*chosen, strict=True))
