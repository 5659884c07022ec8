"""GPT-2: a decoder that stores its matrices inputs × outputs, and queries, keys and values in one."""

from __future__ import annotations

from mergenet_core.architectures.declare import (
    QUESTION_ANSWERING,
    SCORES,
    UNTIED_TOKENS,
    attention_axes,
    embedding,
    feed_forward,
    fused_linear,
    linear,
    norm,
)
from mergenet_core.architectures.schema import Dimensions, Family, LayeredBody, label_count, options
from mergenet_core.spec.json_values import JsonObject, get_bool, get_float, get_int


def _dimensions(config: JsonObject) -> Dimensions:
    # transformers reads the names in common use for these four as well
    width = get_int(config, "n_embd", "hidden_size", default=768)
    heads = get_int(config, "n_head", "num_attention_heads", default=12)
    tied = get_bool(config, "tie_word_embeddings", default=True)
    return Dimensions(
        width=width,
        layers=get_int(config, "n_layer", "num_hidden_layers", default=12),
        heads=heads,
        key_value_heads=heads,
        attention_dropout=get_float(config, "attn_pdrop", default=0.1),
        tied=tied,
        options=options(untied=not tied),
        axes=attention_axes(width, get_int(config, "n_inner", default=4 * width))
        | {
            "vocabulary": get_int(config, "vocab_size", default=50257),
            "positions": get_int(config, "n_positions", "max_position_embeddings", default=1024),
            "labels": label_count(config),
            "spans": 2,
        },
    )


_QKV = {"attention.query": "queries.{layer}", "attention.key": "keys.{layer}", "attention.value": "values.{layer}"}

GPT2 = Family(
    name="gpt2",
    kind="decoder",
    model_types=("gpt2",),
    only_own_types=True,
    dimensions=_dimensions,
    body=LayeredBody(
        before=(
            *embedding("wte.weight", "word", "vocabulary"),
            *embedding("wpe.weight", "position", "positions"),
        ),
        layer=(
            *norm("h.{layer}.ln_1", "attention.norm"),
            *fused_linear("h.{layer}.attn.c_attn", _QKV, "stream", transposed=True),
            *linear("h.{layer}.attn.c_proj", "attention.out", "stream", "contexts.{layer}", transposed=True),
            *norm("h.{layer}.ln_2", "ffn.norm"),
            *feed_forward("h.{layer}.mlp.c_fc", "h.{layer}.mlp.c_proj", transposed=True),
        ),
        after=norm("ln_f", "norm"),
    ),
    entrance="wte.weight",
    prefix="transformer.",
    heads={
        "text-classification": SCORES,
        "question-answering": QUESTION_ANSWERING,
        "causal-language-modelling": UNTIED_TOKENS,
    },
    prenorm=True,
)
