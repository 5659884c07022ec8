"""DistilBERT: BERT's encoder without segments, with names of its own."""

from __future__ import annotations

from mergenet_core.architectures.declare import (
    QUESTION_ANSWERING,
    attention,
    attention_axes,
    embedding,
    feed_forward,
    linear,
    norm,
)
from mergenet_core.architectures.families.bert import tokens
from mergenet_core.architectures.schema import Dimensions, Family, Head, LayeredBody, label_count, options
from mergenet_core.spec.json_values import JsonObject, get_bool, get_float, get_int


def _dimensions(config: JsonObject) -> Dimensions:
    width, heads = get_int(config, "dim", default=768), get_int(config, "n_heads", default=12)
    tied = get_bool(config, "tie_word_embeddings", default=True)
    return Dimensions(
        width=width,
        layers=get_int(config, "n_layers", default=6),
        heads=heads,
        key_value_heads=heads,
        attention_dropout=get_float(config, "attention_dropout", default=0.1),
        tied=tied,
        options=options(untied=not tied),
        axes=attention_axes(width, get_int(config, "hidden_dim", default=3072))
        | {
            "vocabulary": get_int(config, "vocab_size", default=30522),
            "positions": get_int(config, "max_position_embeddings", default=512),
            "pooled": width,
            "transformed": width,
            "labels": label_count(config),
            "spans": 2,
        },
    )


_LAYER = "transformer.layer.{layer}."

DISTILBERT = Family(
    name="distilbert",
    kind="encoder",
    model_types=("distilbert",),
    dimensions=_dimensions,
    body=LayeredBody(
        before=(
            *embedding("embeddings.word_embeddings.weight", "word", "vocabulary"),
            *embedding("embeddings.position_embeddings.weight", "position", "positions"),
            *norm("embeddings.LayerNorm", "embeddings.norm"),
        ),
        layer=(
            *attention(*(f"{_LAYER}attention.{name}" for name in ("q_lin", "k_lin", "v_lin", "out_lin"))),
            *norm(f"{_LAYER}sa_layer_norm", "attention.norm"),
            *feed_forward(f"{_LAYER}ffn.lin1", f"{_LAYER}ffn.lin2"),
            *norm(f"{_LAYER}output_layer_norm", "ffn.norm"),
        ),
    ),
    entrance="embeddings.word_embeddings.weight",
    prefix="distilbert.",
    heads={
        "text-classification": Head(
            weights=(
                *linear("pre_classifier", "pooler", "pooled", "stream"),
                *linear("classifier", "head", "labels", "pooled"),
            )
        ),
        "question-answering": QUESTION_ANSWERING,
        "masked-language-modelling": tokens(
            "vocab_transform", "vocab_layer_norm", "vocab_projector", "vocab_projector.bias"
        ),
    },
)
