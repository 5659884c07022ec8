"""The vision transformer, as transformers names it and as older checkpoints do."""

from __future__ import annotations

from dataclasses import replace

from mergenet_core.architectures.declare import (
    Weights,
    attention,
    attention_axes,
    embedding,
    feed_forward,
    linear,
    norm,
    patch_embedding,
)
from mergenet_core.architectures.schema import Dimensions, Family, Head, LayeredBody, label_count, options
from mergenet_core.spec.json_values import JsonObject, get_bool, get_float, get_int, get_ints


def _dimensions(config: JsonObject) -> Dimensions:
    width = get_int(config, "hidden_size", default=768)
    heads = get_int(config, "num_attention_heads", default=12)
    patch, image = _sides(config, "patch_size", 16), _sides(config, "image_size", 224)
    return Dimensions(
        width=width,
        layers=get_int(config, "num_hidden_layers", default=12),
        heads=heads,
        key_value_heads=heads,
        attention_dropout=get_float(config, "attention_probs_dropout_prob", default=0.0),
        options=options(qkv_bias=get_bool(config, "qkv_bias", default=True)),
        patch=patch,
        axes=attention_axes(width, get_int(config, "intermediate_size", default=3072))
        | {
            "patches": get_int(config, "num_channels", default=3),
            "class-token": 1,
            "places": 1 + (image[0] // patch[0]) * (image[1] // patch[1]),
            "pooled": get_int(config, "pooler_output_size", default=width),
            "labels": label_count(config),
        },
    )


def _sides(config: JsonObject, name: str, default: int) -> tuple[int, int]:
    """Height and width, which a config gives as one number or two."""
    if isinstance(config.get(name), (list, tuple)):
        sides = get_ints(config, name, default=())
        if len(sides) != 2:
            raise ValueError(f"{name} is {sides}; it must be one whole number, or height and width")
        return sides[0], sides[1]
    side = get_int(config, name, default=default)
    return side, side


def image_embeddings(name: str) -> Weights:
    """Patches, class token and positions below one name."""
    return (
        *patch_embedding(f"{name}.patch_embeddings.projection"),
        *embedding(f"{name}.cls_token", "class", "class-token", stored_axes=3),
        *embedding(f"{name}.position_embeddings", "place", "places", stored_axes=3),
    )


def older_layer() -> Weights:
    """A layer as checkpoints before transformers 5 name it."""
    layer = "encoder.layer.{layer}."
    names = ("attention.query", "attention.key", "attention.value", "output.dense")
    return (
        *attention(*(f"{layer}attention.{name}" for name in names), bias="qkv_bias"),
        *norm(f"{layer}layernorm_before", "attention.norm"),
        *feed_forward(f"{layer}intermediate.dense", f"{layer}output.dense"),
        *norm(f"{layer}layernorm_after", "ffn.norm"),
    )


PROJECTION = linear("visual_projection", "projection", "joint", "pooled", bias=False)
_LAYER = "layers.{layer}."
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
AFTER = (*norm("layernorm", "norm"), *linear("pooler.dense", "pooler", "pooled", "stream", option="pooler"))
_BODY = LayeredBody(
    before=image_embeddings("embeddings"),
    layer=(
        *attention(*(f"{_LAYER}attention.{name}" for name in _ATTENTION), bias="qkv_bias"),
        *norm(f"{_LAYER}layernorm_before", "attention.norm"),
        *feed_forward(f"{_LAYER}mlp.fc1", f"{_LAYER}mlp.fc2"),
        *norm(f"{_LAYER}layernorm_after", "ffn.norm"),
    ),
    after=AFTER,
)

VIT = Family(
    name="vit",
    kind="vit",
    model_types=("vit",),
    dimensions=_dimensions,
    body=_BODY,
    entrance="embeddings.patch_embeddings.projection.weight",
    prefix="vit.",
    heads={"image-classification": Head(weights=linear("classifier", "head", "labels", "stream"))},
    other_heads=PROJECTION,
    prenorm=True,
)
OLDER_VIT = replace(VIT, model_types=(), body=replace(_BODY, layer=older_layer()))
