"""How libraries spell the weights of transformers and of the plain networks here; only these tables know it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mergenet_core.architectures.structure import Form, Kind


class Row(NamedTuple):
    """A weight: its name as a pattern, {n} in an axis being the layer's number and {p} the one before it."""

    pattern: str
    role: str
    form: Form
    out: str
    inp: str | None
    transposed: bool = False
    third: int | None = None
    """Which third of a weight that holds queries, keys and values."""


@dataclass(frozen=True)
class Spelling:
    """The names of a family of models."""

    family: str
    kind: Kind
    base: str
    """The weight that data comes in by; what stands before it stands before every name of the body."""
    body: Sequence[Row]
    ends: Sequence[Row] = ()
    """Heads, wherever they hang in the model."""
    types: tuple[str, ...] = ()
    """Model types that mean by these names what the table says; others may spell alike and compute something else."""
    prenorm: bool = False
    gated: bool = False
    rotary: bool = False


def _linear(name: str, role: str, out: str, inp: str, *, transposed: bool = False) -> list[Row]:
    return [
        Row(rf"{name}\.weight", f"{role}.weight", "matrix", out, inp, transposed),
        Row(rf"{name}\.bias", f"{role}.bias", "vector", out, None),
    ]


def _norm(name: str, role: str, axis: str = "stream") -> list[Row]:
    form: Form = "gain" if axis in ("stream", "embedded") else "vector"
    return [
        Row(rf"{name}\.weight", f"{role}.weight", form, axis, None),
        Row(rf"{name}\.bias", f"{role}.bias", "vector", axis, None),
    ]


def _embedding(name: str, role: str, rows: str) -> Row:
    return Row(name, f"embeddings.{role}", "embedding", rows, "stream")


def _patches(name: str) -> list[Row]:
    return [
        Row(rf"{name}\.weight", "embeddings.patch", "convolution", "stream", "patches"),
        Row(rf"{name}\.bias", "embeddings.patch.bias", "vector", "stream", None),
    ]


def _text_embeddings(words: str, positions: str, segments: str, norm: str) -> list[Row]:
    return [
        _embedding(rf"{words}\.weight", "word", "vocabulary"),
        _embedding(rf"{positions}\.weight", "position", "positions"),
        _embedding(rf"{segments}\.weight", "segment", "specials"),
        *_norm(norm, "embeddings.norm"),
    ]


def _block(
    layer: str, query: str, key: str, value: str, out: str, norm1: str, up: str, down: str, norm2: str
) -> list[Row]:
    return [
        *_linear(layer + query, "attention.query", "queries.{n}", "stream"),
        *_linear(layer + key, "attention.key", "keys.{n}", "stream"),
        *_linear(layer + value, "attention.value", "values.{n}", "stream"),
        *_linear(layer + out, "attention.out", "stream", "contexts.{n}"),
        *_norm(layer + norm1, "attention.norm"),
        *_linear(layer + up, "ffn.up", "ffn.{n}", "stream"),
        *_linear(layer + down, "ffn.down", "stream", "ffn.{n}"),
        *_norm(layer + norm2, "ffn.norm"),
    ]


def _token_head(transform: str, norm: str, decoder: str, bias: str) -> list[Row]:
    """A head that names tokens, behind a dense layer and a norm."""
    return [
        *_linear(transform, "tokens.transform", "transformed", "stream"),
        *_norm(norm, "tokens.norm", "transformed"),
        Row(rf"{decoder}\.weight", "tokens.head.weight", "matrix", "vocabulary", "transformed"),
        Row(bias, "tokens.head.bias", "vector", "vocabulary", None),
    ]


_ANSWERS = _linear(r"qa_outputs", "answers", "spans", "stream")
_POOLED_LABELS = _linear(r"classifier(?:\.out_proj)?", "head", "labels", "pooled")
_SCORES = _linear(r"score", "head", "labels", "stream")
_UNEMBEDDING = [Row(r"lm_head\.weight", "tokens.head.weight", "matrix", "vocabulary", "stream")]

_BERT = Spelling(
    "bert", "encoder", r"embeddings\.word_embeddings\.weight",
    [
        *_text_embeddings(
            r"embeddings\.word_embeddings", r"embeddings\.position_embeddings", r"embeddings\.token_type_embeddings",
            r"embeddings\.LayerNorm",
        ),
        *_linear(r"embeddings_project", "embeddings.project", "stream", "embedded"),
        *_block(
            r"encoder\.layer\.(\d+)\.", r"attention\.self\.query", r"attention\.self\.key", r"attention\.self\.value",
            r"attention\.output\.dense", r"attention\.output\.LayerNorm", r"intermediate\.dense", r"output\.dense",
            r"output\.LayerNorm",
        ),
        *_linear(r"pooler\.dense", "pooler", "pooled", "stream"),
    ],
    [
        *_linear(r"classifier\.dense", "pooler", "pooled", "stream"),
        *_POOLED_LABELS,
        *_ANSWERS,
        *_linear(r"text_projection", "projection", "joint", "pooled"),
        *_token_head(
            r"(?:cls\.predictions\.transform|lm_head|generator_predictions)\.dense",
            r"(?:cls\.predictions\.transform\.LayerNorm|lm_head\.layer_norm|generator_predictions\.LayerNorm)",
            r"(?:cls\.predictions\.decoder|lm_head\.decoder|generator_lm_head)",
            r"(?:cls\.predictions|lm_head|generator_lm_head)\.bias",
        ),
    ],
)  # fmt: skip
_DISTILBERT = Spelling(
    "bert", "encoder", r"embeddings\.word_embeddings\.weight",
    [
        *_text_embeddings(
            r"embeddings\.word_embeddings", r"embeddings\.position_embeddings", r"embeddings\.token_type_embeddings",
            r"embeddings\.LayerNorm",
        ),
        *_block(
            r"transformer\.layer\.(\d+)\.", r"attention\.q_lin", r"attention\.k_lin", r"attention\.v_lin",
            r"attention\.out_lin", r"sa_layer_norm", r"ffn\.lin1", r"ffn\.lin2", r"output_layer_norm",
        ),
    ],
    [
        *_linear(r"pre_classifier", "pooler", "pooled", "stream"),
        *_POOLED_LABELS,
        *_ANSWERS,
        *_token_head(r"vocab_transform", r"vocab_layer_norm", r"vocab_projector", r"vocab_projector\.bias"),
    ],
)  # fmt: skip
_CLIP_BLOCK = _block(
    r"encoder\.layers\.(\d+)\.", r"self_attn\.q_proj", r"self_attn\.k_proj", r"self_attn\.v_proj",
    r"self_attn\.out_proj", r"layer_norm1", r"mlp\.fc1", r"mlp\.fc2", r"layer_norm2",
)  # fmt: skip
_CLIP_TEXT = Spelling(
    "clip-text", "encoder", r"embeddings\.token_embedding\.weight",
    [
        _embedding(r"embeddings\.token_embedding\.weight", "word", "vocabulary"),
        _embedding(r"embeddings\.position_embedding\.weight", "position", "positions"),
        *_CLIP_BLOCK,
        *_norm(r"final_layer_norm", "norm"),
    ],
    _linear(r"text_projection", "projection", "joint", "pooled"),
    prenorm=True,
)  # fmt: skip
_CLIP_VISION = Spelling(
    "vit", "vit", r"embeddings\.patch_embedding\.weight",
    [
        *_patches(r"embeddings\.patch_embedding"),
        _embedding(r"embeddings\.class_embedding", "class", "class-token"),
        _embedding(r"embeddings\.position_embedding\.weight", "place", "places"),
        *_norm(r"pre_layrnorm", "embeddings.norm"),
        *_CLIP_BLOCK,
        *_norm(r"post_layernorm", "norm"),
    ],
    [
        *_linear(r"visual_projection", "projection", "joint", "pooled"),
        *_linear(r"classifier", "head", "labels", "pooled"),
    ],
    prenorm=True,
)  # fmt: skip
_VIT_EMBEDDINGS = [
    *_patches(r"embeddings\.patch_embeddings\.projection"),
    _embedding(r"embeddings\.cls_token", "class", "class-token"),
    _embedding(r"embeddings\.position_embeddings", "place", "places"),
]
_VIT_BODY_END = [*_norm(r"layernorm", "norm"), *_linear(r"pooler\.dense", "pooler", "pooled", "stream")]
_VIT_ENDS = [
    *_linear(r"classifier", "head", "labels", "stream"),
    *_linear(r"visual_projection", "projection", "joint", "pooled"),
]
_VIT = Spelling(
    "vit", "vit", r"embeddings\.patch_embeddings\.projection\.weight",
    [
        *_VIT_EMBEDDINGS,
        *_block(
            r"layers\.(\d+)\.", r"attention\.q_proj", r"attention\.k_proj", r"attention\.v_proj", r"attention\.o_proj",
            r"layernorm_before", r"mlp\.fc1", r"mlp\.fc2", r"layernorm_after",
        ),
        *_VIT_BODY_END,
    ],
    _VIT_ENDS,
    prenorm=True,
)  # fmt: skip
_AS_PUBLISHED = _block(
    r"encoder\.layer\.(\d+)\.", r"attention\.attention\.query", r"attention\.attention\.key",
    r"attention\.attention\.value", r"attention\.output\.dense", r"layernorm_before", r"intermediate\.dense",
    r"output\.dense", r"layernorm_after",
)  # fmt: skip
_VIT_AS_PUBLISHED = Spelling(
    "vit", "vit", r"embeddings\.patch_embeddings\.projection\.weight",
    [*_VIT_EMBEDDINGS, *_AS_PUBLISHED, *_VIT_BODY_END], _VIT_ENDS, prenorm=True,
)  # fmt: skip
_VILT = Spelling(
    "vilt", "fusion", r"embeddings\.text_embeddings\.word_embeddings\.weight",
    [
        *_text_embeddings(
            *(
                rf"embeddings\.text_embeddings\.{name}"
                for name in ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm")
            )
        ),
        *_VIT_EMBEDDINGS,
        _embedding(r"embeddings\.token_type_embeddings\.weight", "modality", "modalities"),
        *_AS_PUBLISHED,
        *_VIT_BODY_END,
    ],
    [
        *_linear(r"classifier\.0", "head.hidden", "hidden", "pooled"),
        *_norm(r"classifier\.1", "head.norm", "hidden"),
        *_linear(r"classifier\.3", "head", "labels", "hidden"),
    ],
    prenorm=True,
)  # fmt: skip
_LLAMA = Spelling(
    "llama", "decoder", r"embed_tokens\.weight",
    [
        _embedding(r"embed_tokens\.weight", "word", "vocabulary"),
        *_norm(r"layers\.(\d+)\.input_layernorm", "attention.norm"),
        *_linear(r"layers\.(\d+)\.self_attn\.q_proj", "attention.query", "queries.{n}", "stream"),
        *_linear(r"layers\.(\d+)\.self_attn\.k_proj", "attention.key", "keys.{n}", "stream"),
        *_linear(r"layers\.(\d+)\.self_attn\.v_proj", "attention.value", "values.{n}", "stream"),
        *_linear(r"layers\.(\d+)\.self_attn\.o_proj", "attention.out", "stream", "contexts.{n}"),
        *_norm(r"layers\.(\d+)\.post_attention_layernorm", "ffn.norm"),
        *_linear(r"layers\.(\d+)\.mlp\.gate_proj", "ffn.gate", "ffn.{n}", "stream"),
        *_linear(r"layers\.(\d+)\.mlp\.up_proj", "ffn.up", "ffn.{n}", "stream"),
        *_linear(r"layers\.(\d+)\.mlp\.down_proj", "ffn.down", "stream", "ffn.{n}"),
        *_norm(r"norm", "norm"),
    ],
    [*_SCORES, *_ANSWERS, *_UNEMBEDDING],
    types=("llama", "mistral", "qwen2"), prenorm=True, gated=True, rotary=True,
)  # fmt: skip
_GPT2 = Spelling(
    "gpt2", "decoder", r"wte\.weight",
    [
        _embedding(r"wte\.weight", "word", "vocabulary"),
        _embedding(r"wpe\.weight", "position", "positions"),
        *_norm(r"h\.(\d+)\.ln_1", "attention.norm"),
        *(
            row
            for third, (role, axis) in enumerate((("query", "queries"), ("key", "keys"), ("value", "values")))
            for row in (
                Row(r"h\.(\d+)\.attn\.c_attn\.weight", f"attention.{role}.weight", "matrix", axis + ".{n}", "stream",
                    True, third),
                Row(r"h\.(\d+)\.attn\.c_attn\.bias", f"attention.{role}.bias", "vector", axis + ".{n}", None, False,
                    third),
            )
        ),
        *_linear(r"h\.(\d+)\.attn\.c_proj", "attention.out", "stream", "contexts.{n}", transposed=True),
        *_norm(r"h\.(\d+)\.ln_2", "ffn.norm"),
        *_linear(r"h\.(\d+)\.mlp\.c_fc", "ffn.up", "ffn.{n}", "stream", transposed=True),
        *_linear(r"h\.(\d+)\.mlp\.c_proj", "ffn.down", "stream", "ffn.{n}", transposed=True),
        *_norm(r"ln_f", "norm"),
    ],
    [*_SCORES, *_ANSWERS, *_UNEMBEDDING],
    types=("gpt2",), prenorm=True,
)  # fmt: skip
_MLP = Spelling(
    "mergenet-mlp", "mlp", r"layers\.0\.weight",
    [
        *_linear(r"layers\.(\d+)", "layer", "units.{n}", "units.{p}"),
        *_linear(r"head", "head", "labels", "units.last"),
    ],
)  # fmt: skip

SPELLINGS = (_BERT, _DISTILBERT, _CLIP_TEXT, _CLIP_VISION, _VIT, _VIT_AS_PUBLISHED, _VILT, _LLAMA, _GPT2, _MLP)
