"""Phi-3: Llama's decoder, with queries, keys and values in one weight, and gate and up projection in another."""

from __future__ import annotations

from functools import partial

from mergenet_core.architectures.declare import SCORES, UNTIED_TOKENS, embedding, fused_linear, linear, norm
from mergenet_core.architectures.families.llama import decoder_dimensions
from mergenet_core.architectures.schema import Family, LayeredBody

_LAYER = "layers.{layer}."
_QKV = {"attention.query": "queries.{layer}", "attention.key": "keys.{layer}", "attention.value": "values.{layer}"}
_GATE_UP = {"ffn.gate": "ffn.{layer}", "ffn.up": "ffn.{layer}"}

PHI3 = Family(
    name="phi3",
    kind="decoder",
    model_types=("phi3",),
    only_own_types=True,
    dimensions=partial(decoder_dimensions, vocabulary=32064, width=3072, inner=8192),
    body=LayeredBody(
        before=embedding("embed_tokens.weight", "word", "vocabulary"),
        layer=(
            *norm(f"{_LAYER}input_layernorm", "attention.norm", bias=False),
            *fused_linear(f"{_LAYER}self_attn.qkv_proj", _QKV, "stream", bias=False),
            *linear(f"{_LAYER}self_attn.o_proj", "attention.out", "stream", "contexts.{layer}", bias=False),
            *norm(f"{_LAYER}post_attention_layernorm", "ffn.norm", bias=False),
            *fused_linear(f"{_LAYER}mlp.gate_up_proj", _GATE_UP, "stream", bias=False),
            *linear(f"{_LAYER}mlp.down_proj", "ffn.down", "stream", "ffn.{layer}", bias=False),
        ),
        after=norm("norm", "norm", bias=False),
    ),
    entrance="embed_tokens.weight",
    prefix="model.",
    heads={"text-classification": SCORES, "causal-language-modelling": UNTIED_TOKENS},
    prenorm=True,
    gated=True,
    rotary=True,
)
