"""Shorthand for declaring weights: layers, norms, embeddings and convolutions as `WeightSpec`s."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mergenet_core.architectures.axes import RESIDUAL_AXES, Form
from mergenet_core.architectures.schema import LAST, Head, WeightSpec

Weights = tuple[WeightSpec, ...]


def linear(
    name: str, role: str, out: str, inp: str, *, bias: bool | str = True, transposed: bool = False, option: str = ""
) -> Weights:
    """A linear layer; `bias` may be the option that its bias depends on, `option` is that of the layer."""
    weight = WeightSpec(
        name=f"{name}.weight", role=f"{role}.weight", form="matrix", out=out, inp=inp, transposed=transposed,
        option=option,
    )  # fmt: skip
    if bias is False:
        return (weight,)
    depends = bias if isinstance(bias, str) else option
    return weight, WeightSpec(name=f"{name}.bias", role=f"{role}.bias", form="vector", out=out, option=depends)


def fused_linear(
    name: str, roles: Mapping[str, str], inp: str, *, bias: bool = True, transposed: bool = False
) -> Weights:
    """A linear layer that computes several at once: role → output axis, in the order of its outputs."""
    axes = tuple(roles.values())
    found: list[WeightSpec] = []
    for position, (role, out) in enumerate(roles.items()):
        weight, *biases = linear(name, role, out, inp, bias=bias, transposed=transposed)
        found += [replace(spec, fused=axes, position=position) for spec in (weight, *biases)]
    return tuple(found)


def norm(name: str, role: str, axis: str = "stream", *, bias: bool = True) -> Weights:
    """A norm's gain and bias."""
    form: Form = "gain" if axis in RESIDUAL_AXES else "vector"
    gain = WeightSpec(name=f"{name}.weight", role=f"{role}.weight", form=form, out=axis)
    return (gain, WeightSpec(name=f"{name}.bias", role=f"{role}.bias", form="vector", out=axis)) if bias else (gain,)


def embedding(name: str, role: str, rows: str, *, stream: str = "stream", stored_axes: int = 2) -> Weights:
    """A table of embeddings; `name` is that of the entry, `.weight` included."""
    return (
        WeightSpec(
            name=name, role=f"embeddings.{role}", form="embedding", out=rows, inp=stream, stored_axes=stored_axes
        ),
    )


def patch_embedding(name: str, *, option: str = "") -> Weights:
    """The convolution that makes an image's patches entries of the stream; its bias may depend on an option."""
    return (
        WeightSpec(name=f"{name}.weight", role="embeddings.patch", form="convolution", out="stream", inp="patches"),
        WeightSpec(name=f"{name}.bias", role="embeddings.patch.bias", form="vector", out="stream", option=option),
    )


def attention(
    query: str, key: str, value: str, out: str, *, bias: bool | str = True, out_bias: bool | str = True
) -> Weights:
    """An attention layer of four projections, by their names within the layer."""
    return (
        *linear(query, "attention.query", "queries.{layer}", "stream", bias=bias),
        *linear(key, "attention.key", "keys.{layer}", "stream", bias=bias),
        *linear(value, "attention.value", "values.{layer}", "stream", bias=bias),
        *linear(out, "attention.out", "stream", "contexts.{layer}", bias=out_bias),
    )


def feed_forward(up: str, down: str, *, transposed: bool = False) -> Weights:
    """A plain feed-forward layer, by the names of its two projections within the layer."""
    return (
        *linear(up, "ffn.up", "ffn.{layer}", "stream", transposed=transposed),
        *linear(down, "ffn.down", "stream", "ffn.{layer}", transposed=transposed),
    )


def attention_axes(width: int, inner: int, *, queries: int | None = None, keys: int | None = None) -> dict[str, int]:
    """The sizes of a transformer layer's axes; without `queries` and `keys` they are as wide as the stream."""
    read, kept = queries or width, keys or queries or width
    return {"stream": width, "queries": read, "keys": kept, "values": kept, "contexts": read, "ffn": inner}


def unpaired(name: str, axis: str = "", *, option: str = "") -> Weights:
    """An entry of the state dict that takes no part in pairing: a counter, or a duplicate."""
    return (WeightSpec(name=name, role=None, form="vector", out=axis, option=option),)


def convolution(
    name: str, role: str, layer: int | None, out: str, inp: str | None, kernel: int, *, stage: int | None = None,
    conv: str = "convolution", norm: str = "normalization",
) -> Weights:  # fmt: skip
    """A convolution without bias and the BatchNorm behind it; without an input axis it is depthwise."""
    form: Form = "convolution" if inp is not None else "depthwise"
    vectors = {"weight": "weight", "bias": "bias", "running_mean": "mean", "running_var": "variance"}
    return (
        WeightSpec(
            name=f"{name}.{conv}.weight", role=f"{role}conv", form=form, out=out, inp=inp, layer=layer, stage=stage,
            kernel=(kernel, kernel),
        ),
        *(
            WeightSpec(name=f"{name}.{norm}.{entry}", role=f"{role}norm.{kind}", form="vector", out=out, layer=layer)
            for entry, kind in vectors.items()
        ),
        *unpaired(f"{name}.{norm}.num_batches_tracked"),
    )  # fmt: skip


QUESTION_ANSWERING = Head(weights=linear("qa_outputs", "answers", "spans", "stream"))
SCORES = Head(weights=linear("score", "head", "labels", "stream", bias=False))
"""A head over labels that reads the last token."""
UNTIED_TOKENS = Head(
    weights=linear("lm_head", "tokens.head", "vocabulary", "stream", bias=False, option="untied"),
)
"""A head over the vocabulary that is the word embedding unless the config unties them."""


def classifier(name: str, inp: str = LAST) -> Head:
    """A linear head over labels."""
    return Head(weights=linear(name, "head", "labels", inp))
