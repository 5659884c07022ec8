"""CLIP: a text and an image tower of one kind of layer."""

from __future__ import annotations

from mergenet_core.architectures.declare import (
    attention,
    attention_axes,
    embedding,
    feed_forward,
    linear,
    norm,
    patch_embedding,
    unpaired,
)
from mergenet_core.architectures.schema import (
    Dimensions,
    Family,
    LayeredBody,
    TowerSpec,
    TwoTowerFamily,
    label_count,
)
from mergenet_core.spec.json_values import JsonObject, get_bool, get_float, get_int

_LAYER = "encoder.layers.{layer}."
_LAYERS = (
    *attention(*(f"{_LAYER}self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj"))),
    *norm(f"{_LAYER}layer_norm1", "attention.norm"),
    *feed_forward(f"{_LAYER}mlp.fc1", f"{_LAYER}mlp.fc2"),
    *norm(f"{_LAYER}layer_norm2", "ffn.norm"),
)
_TEXT_PROJECTION = linear("text_projection", "projection", "joint", "stream", bias=False)
_IMAGE_PROJECTION = linear("visual_projection", "projection", "joint", "stream", bias=False)


def _text_dimensions(config: JsonObject) -> Dimensions:
    width, heads = get_int(config, "hidden_size", default=512), get_int(config, "num_attention_heads", default=8)
    return Dimensions(
        width=width,
        layers=get_int(config, "num_hidden_layers", default=12),
        heads=heads,
        key_value_heads=heads,
        attention_dropout=get_float(config, "attention_dropout", default=0.0),
        tied=get_bool(config, "tie_word_embeddings", default=True),
        axes=attention_axes(width, get_int(config, "intermediate_size", default=2048))
        | {
            "vocabulary": get_int(config, "vocab_size", default=49408),
            "positions": get_int(config, "max_position_embeddings", default=77),
        },
    )


def _vision_dimensions(config: JsonObject) -> Dimensions:
    width, heads = get_int(config, "hidden_size", default=768), get_int(config, "num_attention_heads", default=12)
    patch = get_int(config, "patch_size", default=32)
    return Dimensions(
        width=width,
        layers=get_int(config, "num_hidden_layers", default=12),
        heads=heads,
        key_value_heads=heads,
        attention_dropout=get_float(config, "attention_dropout", default=0.0),
        patch=(patch, patch),
        axes=attention_axes(width, get_int(config, "intermediate_size", default=3072))
        | {
            "patches": get_int(config, "num_channels", default=3),
            "class-token": 1,
            "places": 1 + (get_int(config, "image_size", default=224) // patch) ** 2,
            "labels": label_count(config),
        },
    )


CLIP_TEXT = Family(
    name="clip-text",
    kind="encoder",
    model_types=("clip_text_model",),
    dimensions=_text_dimensions,
    body=LayeredBody(
        before=(
            *embedding("embeddings.token_embedding.weight", "word", "vocabulary"),
            *embedding("embeddings.position_embedding.weight", "position", "positions"),
        ),
        layer=_LAYERS,
        after=norm("final_layer_norm", "norm"),
    ),
    entrance="embeddings.token_embedding.weight",
    other_heads=_TEXT_PROJECTION,
    prenorm=True,
)
CLIP_VISION = Family(
    name="clip-vision",
    kind="vit",
    model_types=("clip_vision_model",),
    dimensions=_vision_dimensions,
    body=LayeredBody(
        before=(
            *patch_embedding("embeddings.patch_embedding", option="patch_bias"),  # SigLIP's tower has it, CLIP's not
            *embedding("embeddings.class_embedding", "class", "class-token", stored_axes=1),
            *embedding("embeddings.position_embedding.weight", "place", "places"),
            *norm("pre_layrnorm", "embeddings.norm"),  # the library's spelling
        ),
        layer=_LAYERS,
        after=norm("post_layernorm", "norm"),
    ),
    entrance="embeddings.patch_embedding.weight",
    other_heads=(*_IMAGE_PROJECTION, *linear("classifier", "head", "labels", "stream")),
    prenorm=True,
)
CLIP = TwoTowerFamily(
    model_type="clip",
    text=TowerSpec(config_key="text_config", prefix="text_model.", families=(CLIP_TEXT,), projection=_TEXT_PROJECTION),
    image=TowerSpec(
        config_key="vision_config", prefix="vision_model.", families=(CLIP_VISION,), projection=_IMAGE_PROJECTION
    ),
    joint=lambda config: get_int(config, "projection_dim", default=512),
    extra=unpaired("logit_scale"),
    tasks=("image-text-retrieval",),
)
