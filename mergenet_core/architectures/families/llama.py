"""Llama, Mistral and Qwen2: a decoder with gated feed-forwards, rotary positions and grouped attention."""

from __future__ import annotations

from mergenet_core.architectures.declare import (
    QUESTION_ANSWERING,
    UNTIED_TOKENS,
    attention,
    attention_axes,
    embedding,
    linear,
    norm,
)
from mergenet_core.architectures.schema import Dimensions, Family, Head, LayeredBody, label_count, options
from mergenet_core.spec.json_values import JsonObject, get_bool, get_float, get_int, get_str

_LAYER = "layers.{layer}."


def _dimensions(config: JsonObject) -> Dimensions:
    kind = get_str(config, "model_type", default="llama")
    width = get_int(config, "hidden_size", default=4096)
    heads = get_int(config, "num_attention_heads", default=32)
    groups = get_int(config, "num_key_value_heads", default={"mistral": 8, "qwen2": 32}.get(kind, heads))
    head_size = get_int(config, "head_dim", default=width // heads)
    inner = get_int(config, "intermediate_size", default={"mistral": 14336, "qwen2": 22016}.get(kind, 11008))
    tied = get_bool(config, "tie_word_embeddings", default=False)
    bias = kind == "llama" and get_bool(config, "attention_bias", default=False)
    return Dimensions(
        width=width,
        layers=get_int(config, "num_hidden_layers", default=32),
        heads=heads,
        key_value_heads=groups,
        attention_dropout=get_float(config, "attention_dropout", default=0.0),
        tied=tied,
        options=options(
            qkv_bias=bias or kind == "qwen2",
            out_bias=bias,
            ffn_bias=kind == "llama" and get_bool(config, "mlp_bias", default=False),
            untied=not tied,
        ),
        axes=attention_axes(width, inner, queries=heads * head_size, keys=groups * head_size)
        | {
            "vocabulary": get_int(config, "vocab_size", default=151936 if kind == "qwen2" else 32000),
            "labels": label_count(config),
            "spans": 2,
        },
    )


LLAMA = Family(
    name="llama",
    kind="decoder",
    model_types=("llama", "mistral", "qwen2"),
    only_own_types=True,
    dimensions=_dimensions,
    body=LayeredBody(
        before=embedding("embed_tokens.weight", "word", "vocabulary"),
        layer=(
            *norm(f"{_LAYER}input_layernorm", "attention.norm", bias=False),
            *attention(
                *(f"{_LAYER}self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")),
                bias="qkv_bias",
                out_bias="out_bias",
            ),
            *norm(f"{_LAYER}post_attention_layernorm", "ffn.norm", bias=False),
            *linear(f"{_LAYER}mlp.gate_proj", "ffn.gate", "ffn.{layer}", "stream", bias="ffn_bias"),
            *linear(f"{_LAYER}mlp.up_proj", "ffn.up", "ffn.{layer}", "stream", bias="ffn_bias"),
            *linear(f"{_LAYER}mlp.down_proj", "ffn.down", "stream", "ffn.{layer}", bias="ffn_bias"),
        ),
        after=norm("norm", "norm", bias=False),
    ),
    entrance="embed_tokens.weight",
    prefix="model.",
    heads={
        "text-classification": Head(weights=linear("score", "head", "labels", "stream", bias=False)),
        "question-answering": Head(weights=QUESTION_ANSWERING.weights, prefix="transformer."),
        "causal-language-modelling": UNTIED_TOKENS,
    },
    other_heads=linear("score", "head", "labels", "stream"),  # of labels for each token
    prenorm=True,
    gated=True,
    rotary=True,
)
