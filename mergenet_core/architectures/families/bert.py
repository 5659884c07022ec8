"""BERT, RoBERTa and ELECTRA: one encoder, with heads of other names; ELECTRA's embeddings may be narrower."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from mergenet_core.architectures.declare import (
    QUESTION_ANSWERING,
    Weights,
    attention,
    attention_axes,
    embedding,
    feed_forward,
    linear,
    norm,
    unpaired,
)
from mergenet_core.architectures.schema import Dimensions, Family, Head, LayeredBody, WeightSpec, label_count, options
from mergenet_core.spec.json_values import JsonObject, get_bool, get_float, get_int


def bert_dimensions(
    config: JsonObject, *, width: int = 768, heads: int = 12, inner: int = 3072, vocabulary: int = 30522
) -> Dimensions:
    """Sizes by the names that most encoders use, with BERT's defaults."""
    width = get_int(config, "hidden_size", default=width)
    heads = get_int(config, "num_attention_heads", default=heads)
    tied = get_bool(config, "tie_word_embeddings", default=True)
    return Dimensions(
        width=width,
        layers=get_int(config, "num_hidden_layers", default=12),
        heads=heads,
        key_value_heads=heads,
        attention_dropout=get_float(config, "attention_probs_dropout_prob", default=0.1),
        tied=tied,
        options=options(untied=not tied),
        axes=attention_axes(width, get_int(config, "intermediate_size", default=inner))
        | {
            "vocabulary": get_int(config, "vocab_size", default=vocabulary),
            "positions": get_int(config, "max_position_embeddings", default=512),
            "specials": get_int(config, "type_vocab_size", default=2),
            "pooled": width,
            "transformed": width,
            "labels": label_count(config),
            "spans": 2,
        },
    )


def _electra_dimensions(config: JsonObject) -> Dimensions:
    found = bert_dimensions(config, width=256, heads=4, inner=1024)
    embedded = get_int(config, "embedding_size", default=128)
    return replace(
        found,
        options=found.options | options(projects=embedded != found.width),
        axes={**found.axes, "embedded": embedded, "transformed": embedded},
    )


def text_embeddings(name: str, *, stream: str = "stream") -> Weights:
    """Words, positions, segments and their norm below one name."""
    return (
        *embedding(f"{name}.word_embeddings.weight", "word", "vocabulary", stream=stream),
        *embedding(f"{name}.position_embeddings.weight", "position", "positions", stream=stream),
        *embedding(f"{name}.token_type_embeddings.weight", "segment", "specials", stream=stream),
        *norm(f"{name}.LayerNorm", "embeddings.norm", stream),
    )


def _body(embeddings: Weights, pooler: Weights = ()) -> LayeredBody:
    layer = "encoder.layer.{layer}."
    names = ("self.query", "self.key", "self.value", "output.dense")
    return LayeredBody(
        before=embeddings,
        layer=(
            *attention(*(f"{layer}attention.{name}" for name in names)),
            *norm(f"{layer}attention.output.LayerNorm", "attention.norm"),
            *feed_forward(f"{layer}intermediate.dense", f"{layer}output.dense"),
            *norm(f"{layer}output.LayerNorm", "ffn.norm"),
        ),
        after=pooler,
    )


def tokens(transform: str, transform_norm: str, decoder: str, bias: str) -> Head:
    """A head over the vocabulary behind a dense layer and a norm; the matrix is the word embedding, unless untied."""
    weight, double = linear(decoder, "tokens.head", "vocabulary", "transformed", option="untied")
    return Head(
        weights=(
            *linear(transform, "tokens.transform", "transformed", "stream"),
            *norm(transform_norm, "tokens.norm", "transformed"),
            weight,
            WeightSpec(name=bias, role="tokens.head.bias", form="vector", out="vocabulary"),
            *(unpaired(double.name, double.out, option="untied") if double.name != bias else ()),
        )
    )


POOLED = options(pooler=True)
_POOLER = linear("pooler.dense", "pooler", "pooled", "stream", option="pooler")
_DENSE = linear("classifier.dense", "pooler", "pooled", "stream")
_LABELS = linear("classifier", "head", "labels", "pooled")
PROJECTION = linear("text_projection", "projection", "joint", "pooled", bias=False)
_BERT_TOKENS = tokens(
    "cls.predictions.transform.dense",
    "cls.predictions.transform.LayerNorm",
    "cls.predictions.decoder",
    "cls.predictions.bias",
)
_ROBERTA_TOKENS = tokens("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias")
_ELECTRA_TOKENS = tokens(
    "generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head", "generator_lm_head.bias"
)
_ENTRANCE = "embeddings.word_embeddings.weight"

BERT = Family(
    name="bert",
    kind="encoder",
    model_types=("bert",),
    dimensions=bert_dimensions,
    body=_body(text_embeddings("embeddings"), _POOLER),
    entrance=_ENTRANCE,
    prefix="bert.",
    heads={
        "text-classification": Head(weights=_LABELS, options=POOLED),
        "question-answering": QUESTION_ANSWERING,
        "causal-language-modelling": _BERT_TOKENS,
        "masked-language-modelling": _BERT_TOKENS,
    },
    other_heads=PROJECTION,
)
_DENSE_LABELS = linear("classifier.out_proj", "head", "labels", "pooled")
ROBERTA = Family(
    name="roberta",
    kind="encoder",
    model_types=("roberta",),
    dimensions=partial(bert_dimensions, vocabulary=50265),
    body=_body(text_embeddings("embeddings"), _POOLER),
    entrance=_ENTRANCE,
    prefix="roberta.",
    heads={
        "text-classification": Head(weights=(*_DENSE, *_DENSE_LABELS)),
        "question-answering": QUESTION_ANSWERING,
        "causal-language-modelling": _ROBERTA_TOKENS,
        "masked-language-modelling": _ROBERTA_TOKENS,
    },
    other_heads=PROJECTION,
)
ELECTRA = Family(
    name="electra",
    kind="encoder",
    model_types=("electra",),
    dimensions=_electra_dimensions,
    body=_body(
        (
            *text_embeddings("embeddings", stream="embedded"),
            *linear("embeddings_project", "embeddings.project", "stream", "embedded", option="projects"),
        )
    ),
    entrance=_ENTRANCE,
    prefix="electra.",
    heads={
        "text-classification": Head(weights=(*_DENSE, *_DENSE_LABELS)),
        "question-answering": QUESTION_ANSWERING,
        "causal-language-modelling": _ELECTRA_TOKENS,
        "masked-language-modelling": _ELECTRA_TOKENS,
    },
    other_heads=linear("classifier", "head", "labels", "stream"),  # of labels for each token
)
