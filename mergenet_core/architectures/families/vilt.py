"""ViLT: a fusion encoder that reads words and patches in one sequence."""

from __future__ import annotations

from dataclasses import replace

from mergenet_core.architectures.declare import embedding, linear, norm
from mergenet_core.architectures.families.bert import POOLED, bert_dimensions, text_embeddings
from mergenet_core.architectures.families.vit import AFTER, image_embeddings, older_layer
from mergenet_core.architectures.schema import Dimensions, Family, Head, LayeredBody, options
from mergenet_core.spec.json_values import JsonObject, get_bool, get_float, get_int


def _dimensions(config: JsonObject) -> Dimensions:
    found = bert_dimensions(config)
    patch = get_int(config, "patch_size", default=32)
    return replace(
        found,
        attention_dropout=get_float(config, "attention_probs_dropout_prob", default=0.0),
        options=options(qkv_bias=get_bool(config, "qkv_bias", default=True)),
        patch=(patch, patch),
        axes={
            **found.axes,
            "positions": get_int(config, "max_position_embeddings", default=40),
            "patches": get_int(config, "num_channels", default=3),
            "class-token": 1,
            "places": 1 + (get_int(config, "image_size", default=384) // patch) ** 2,
            "modalities": get_int(config, "modality_type_vocab_size", default=2),
            "hidden": 2 * found.width,
        },
    )


VILT = Family(
    name="vilt",
    kind="fusion",
    model_types=("vilt",),
    dimensions=_dimensions,
    body=LayeredBody(
        before=(
            *text_embeddings("embeddings.text_embeddings"),
            *image_embeddings("embeddings"),
            *embedding("embeddings.token_type_embeddings.weight", "modality", "modalities"),
        ),
        layer=older_layer(),
        after=AFTER,
    ),
    entrance="embeddings.text_embeddings.word_embeddings.weight",
    prefix="vilt.",
    heads={
        "visual-question-answering": Head(
            weights=(
                *linear("classifier.0", "head.hidden", "hidden", "pooled"),
                *norm("classifier.1", "head.norm", "hidden"),
                *linear("classifier.3", "head", "labels", "hidden"),
            ),
            options=POOLED,
        )
    },
    prenorm=True,
)
