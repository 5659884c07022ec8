"""Names and shapes of models over images and texts from scratch, told from their configs."""

from __future__ import annotations

from collections.abc import Callable

from mergenet_core.architectures.transformer_shapes import Config, Shapes, labels, linear, norm
from mergenet_core.model_files.composite_config import image_part, text_part


def vilt_shapes(config: Config) -> Shapes:
    """A fusion encoder with a head for answers: words and patches in one sequence."""
    width, inner = config.get("hidden_size", 768), config.get("intermediate_size", 3072)
    patch, text = config.get("patch_size", 32), "vilt.embeddings.text_embeddings"
    shapes: Shapes = {}
    for name, rows, default in (
        ("word", "vocab_size", 30522),
        ("position", "max_position_embeddings", 40),
        ("token_type", "type_vocab_size", 2),
    ):
        shapes[f"{text}.{name}_embeddings.weight"] = (config.get(rows, default), width)
    shapes |= {
        **norm(f"{text}.LayerNorm", width),
        "vilt.embeddings.cls_token": (1, 1, width),
        "vilt.embeddings.position_embeddings": (1, _places(config, 384, patch) + 1, width),
        "vilt.embeddings.patch_embeddings.projection.weight": (width, config.get("num_channels", 3), patch, patch),
        "vilt.embeddings.patch_embeddings.projection.bias": (width,),
        "vilt.embeddings.token_type_embeddings.weight": (config.get("modality_type_vocab_size", 2), width),
        **norm("vilt.layernorm", width),
        **linear("vilt.pooler.dense", width, width),
        **linear("classifier.0", 2 * width, width),
        **norm("classifier.1", 2 * width),
        **linear("classifier.3", labels(config), 2 * width),
    }
    for layer in range(config.get("num_hidden_layers", 12)):
        block = f"vilt.encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            shapes |= linear(f"{block}.attention.attention.{part}", width, width, bias=config.get("qkv_bias", True))
        shapes |= linear(f"{block}.attention.output.dense", width, width)
        shapes |= linear(f"{block}.intermediate.dense", inner, width) | linear(f"{block}.output.dense", width, inner)
        shapes |= norm(f"{block}.layernorm_before", width) | norm(f"{block}.layernorm_after", width)
    return shapes


def clip_shapes(config: Config) -> Shapes:
    """CLIP's two towers and their projections into the joint space."""
    text, vision = text_part(config), image_part(config)
    width, sight, patch = text.get("hidden_size", 512), vision.get("hidden_size", 768), vision.get("patch_size", 32)
    shapes: Shapes = {
        "text_model.embeddings.token_embedding.weight": (text.get("vocab_size", 49408), width),
        "text_model.embeddings.position_embedding.weight": (text.get("max_position_embeddings", 77), width),
        **norm("text_model.final_layer_norm", width),
        "vision_model.embeddings.class_embedding": (sight,),
        "vision_model.embeddings.patch_embedding.weight": (sight, vision.get("num_channels", 3), patch, patch),
        "vision_model.embeddings.position_embedding.weight": (_places(vision, 224, patch) + 1, sight),
        **norm("vision_model.pre_layrnorm", sight),
        **norm("vision_model.post_layernorm", sight),
    }
    for tower, part, inner in (("text_model", text, 2048), ("vision_model", vision, 3072)):
        size, inner = (width, sight)[tower == "vision_model"], part.get("intermediate_size", inner)
        for layer in range(part.get("num_hidden_layers", 12)):
            block = f"{tower}.encoder.layers.{layer}"
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                shapes |= linear(f"{block}.self_attn.{name}", size, size)
            shapes |= norm(f"{block}.layer_norm1", size) | norm(f"{block}.layer_norm2", size)
            shapes |= linear(f"{block}.mlp.fc1", inner, size) | linear(f"{block}.mlp.fc2", size, inner)
    return shapes | _joint(config, width, sight)


def dual_shapes(config: Config, tower: Callable[[Config], Shapes | None]) -> Shapes | None:
    """A text and an image encoder side by side, with projections into a joint space; `tower` tells a model's shapes."""
    text, vision = text_part(config), image_part(config)
    words, sights = tower(text), tower(vision)
    if words is None or sights is None:
        return None
    sight = vision.get("hidden_size", 768)
    return {
        **_below("text_model", "bert", words),
        **_below("vision_model", "vit", sights),
        **linear("vision_model.pooler.dense", vision.get("pooler_output_size") or sight, sight),
        **_joint(config, text.get("hidden_size", 768), sight),
    }


def _below(name: str, prefix: str, shapes: Shapes) -> Shapes:
    """A model's body under another name, without its head."""
    return {
        f"{name}{weight.removeprefix(prefix)}": shape
        for weight, shape in shapes.items()
        if weight.startswith(f"{prefix}.")
    }


def _joint(config: Config, width: int, sight: int) -> Shapes:
    joint = config.get("projection_dim", 512)
    return {
        "logit_scale": (),
        "visual_projection.weight": (joint, sight),
        "text_projection.weight": (joint, width),
    }


def _places(config: Config, size: int, patch: int) -> int:
    return int((config.get("image_size", size) // patch) ** 2)
