"""Llama, Mistral and Qwen2: a decoder with gated feed-forwards, rotary positions and grouped attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from mergenet_core.architectures.declare import (
    QUESTION_ANSWERING,
    SCORES,
    UNTIED_TOKENS,
    attention,
    attention_axes,
    embedding,
    linear,
    norm,
)
from mergenet_core.architectures.schema import Dimensions, Family, LayeredBody, label_count, options
from mergenet_core.spec.json_values import JsonObject, get_bool, get_float, get_int

_LAYER = "layers.{layer}."


def _no_biases(_: JsonObject) -> frozenset[str]:
    return options()


def decoder_dimensions(
    config: JsonObject,
    *,
    vocabulary: int = 32000,
    width: int = 4096,
    inner: int = 11008,
    groups: int | None = None,
    biases: Callable[[JsonObject], frozenset[str]] = _no_biases,
) -> Dimensions:
    """Sizes by the names that most decoders use; `groups` are their key-value heads, None as many as heads."""
    width = get_int(config, "hidden_size", default=width)
    heads = get_int(config, "num_attention_heads", default=32)
    groups = get_int(config, "num_key_value_heads", default=groups or heads)
    head_size = get_int(config, "head_dim", default=width // heads)
    tied = get_bool(config, "tie_word_embeddings", default=False)
    return Dimensions(
        width=width,
        layers=get_int(config, "num_hidden_layers", default=32),
        heads=heads,
        key_value_heads=groups,
        attention_dropout=get_float(config, "attention_dropout", default=0.0),
        tied=tied,
        options=biases(config) | options(untied=not tied),
        axes=attention_axes(
            width,
            get_int(config, "intermediate_size", default=inner),
            queries=heads * head_size,
            keys=groups * head_size,
        )
        | {
            "vocabulary": get_int(config, "vocab_size", default=vocabulary),
            "labels": label_count(config),
            "spans": 2,
        },
    )


def _llama_biases(config: JsonObject) -> frozenset[str]:
    attention_bias = get_bool(config, "attention_bias", default=False)
    ffn_bias = get_bool(config, "mlp_bias", default=False)
    return options(qkv_bias=attention_bias, out_bias=attention_bias, ffn_bias=ffn_bias)


LLAMA = Family(
    name="llama",
    kind="decoder",
    model_types=("llama",),
    only_own_types=True,
    dimensions=partial(decoder_dimensions, biases=_llama_biases),
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
        "text-classification": SCORES,
        "question-answering": replace(QUESTION_ANSWERING, prefix="transformer."),
        "causal-language-modelling": UNTIED_TOKENS,
    },
    other_heads=linear("score", "head", "labels", "stream"),  # of labels for each token
    prenorm=True,
    gated=True,
    rotary=True,
)
MISTRAL = replace(
    LLAMA,
    name="mistral",
    model_types=("mistral",),
    dimensions=partial(decoder_dimensions, inner=14336, groups=8),
    heads={**LLAMA.heads, "question-answering": QUESTION_ANSWERING},
)
QWEN2 = replace(
    LLAMA,
    name="qwen2",
    model_types=("qwen2",),
    dimensions=partial(
        decoder_dimensions, vocabulary=151936, inner=22016, groups=32, biases=lambda _: options(qkv_bias=True)
    ),
)
