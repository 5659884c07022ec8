"""Names and shapes of transformers from scratch, told from their configs; what a config leaves out is a default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Shapes = dict[str, tuple[int, ...]]
Config = Mapping[str, Any]


def transformer_shapes(config: Config, task: str | None) -> Shapes | None:
    """The state dict's names and shapes with the task's head, a tied weight told once; None for what is not known here.

    Without a task the head is a classifier's.
    """
    known = _FAMILIES.get(str(config.get("model_type")))
    if known is None:
        return None
    body, heads = known
    head = heads.get(task or "text-classification") or (heads.get("image-classification") if task is None else None)
    return None if head is None else body(config) | head(config)


def linear(name: str, outputs: int, inputs: int, *, bias: bool = True) -> Shapes:
    """A linear layer's weight and bias."""
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def _turned(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int) -> Shapes:
    """A norm's gain and bias."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def labels(config: Config) -> int:
    """How many labels a classifier's head has."""
    return int(config.get("num_labels") or len(config.get("id2label") or {}) or 2)


def _distilbert(config: Config) -> Shapes:
    width, inner = config.get("dim", 768), config.get("hidden_dim", 3072)
    shapes: Shapes = {
        "distilbert.embeddings.word_embeddings.weight": (config.get("vocab_size", 30522), width),
        "distilbert.embeddings.position_embeddings.weight": (config.get("max_position_embeddings", 512), width),
        **norm("distilbert.embeddings.LayerNorm", width),
    }
    for layer in range(config.get("n_layers", 6)):
        block = f"distilbert.transformer.layer.{layer}"
        for part in ("q_lin", "k_lin", "v_lin", "out_lin"):
            shapes |= linear(f"{block}.attention.{part}", width, width)
        shapes |= norm(f"{block}.sa_layer_norm", width) | norm(f"{block}.output_layer_norm", width)
        shapes |= linear(f"{block}.ffn.lin1", inner, width) | linear(f"{block}.ffn.lin2", width, inner)
    return shapes


def _distilbert_classifier(config: Config) -> Shapes:
    width = config.get("dim", 768)
    return linear("pre_classifier", width, width) | linear("classifier", labels(config), width)


def _gpt2(config: Config) -> Shapes:
    width = config.get("n_embd", 768)
    inner = config.get("n_inner") or 4 * width
    shapes: Shapes = {
        "transformer.wte.weight": (config.get("vocab_size", 50257), width),
        "transformer.wpe.weight": (config.get("n_positions", 1024), width),
        **norm("transformer.ln_f", width),
    }
    for layer in range(config.get("n_layer", 12)):
        block = f"transformer.h.{layer}"
        shapes |= norm(f"{block}.ln_1", width) | norm(f"{block}.ln_2", width)
        shapes |= _turned(f"{block}.attn.c_attn", 3 * width, width) | _turned(f"{block}.attn.c_proj", width, width)
        shapes |= _turned(f"{block}.mlp.c_fc", inner, width) | _turned(f"{block}.mlp.c_proj", width, inner)
    return shapes


def _llama(config: Config) -> Shapes:
    qwen = config.get("model_type") == "qwen2"
    width, inner = config.get("hidden_size", 4096), config.get("intermediate_size", 22016 if qwen else _LLAMA_INNER)
    heads = config.get("num_attention_heads", 32)
    default = {"mistral": 8, "qwen2": 32}.get(str(config.get("model_type")), heads)
    groups = config.get("num_key_value_heads", default) or heads
    size = config.get("head_dim") or width // heads
    bias, inner_bias = bool(config.get("attention_bias")), bool(config.get("mlp_bias"))
    shapes: Shapes = {
        "model.embed_tokens.weight": (config.get("vocab_size", 151936 if qwen else 32000), width),
        "model.norm.weight": (width,),
    }
    for layer in range(config.get("num_hidden_layers", 32)):
        block = f"model.layers.{layer}"
        for part, count in (("q", heads), ("k", groups), ("v", groups)):
            shapes |= linear(f"{block}.self_attn.{part}_proj", count * size, width, bias=qwen or bias)
        shapes |= linear(f"{block}.self_attn.o_proj", width, heads * size, bias=bias)
        for part in ("gate_proj", "up_proj"):
            shapes |= linear(f"{block}.mlp.{part}", inner, width, bias=inner_bias)
        shapes |= linear(f"{block}.mlp.down_proj", width, inner, bias=inner_bias)
        shapes |= {f"{block}.{norm}.weight": (width,) for norm in ("input_layernorm", "post_attention_layernorm")}
    return shapes


_LLAMA_INNER = 11008


def _mistral(config: Config) -> Shapes:
    return _llama({"intermediate_size": 14336, **config})


def _vit(config: Config) -> Shapes:
    width, inner, patch = config.get("hidden_size", 768), config.get("intermediate_size", 3072), _pair(config)
    places = 1
    for side, length in zip(_pair(config, "image_size", 224), patch, strict=True):
        places *= side // length
    shapes: Shapes = {
        "vit.embeddings.cls_token": (1, 1, width),
        "vit.embeddings.position_embeddings": (1, places + 1, width),
        "vit.embeddings.patch_embeddings.projection.weight": (width, config.get("num_channels", 3), *patch),
        "vit.embeddings.patch_embeddings.projection.bias": (width,),
        **norm("vit.layernorm", width),
    }
    for layer in range(config.get("num_hidden_layers", 12)):
        block = f"vit.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj"):
            shapes |= linear(f"{block}.attention.{part}", width, width, bias=config.get("qkv_bias", True))
        shapes |= linear(f"{block}.attention.o_proj", width, width)
        shapes |= norm(f"{block}.layernorm_before", width) | norm(f"{block}.layernorm_after", width)
        shapes |= linear(f"{block}.mlp.fc1", inner, width) | linear(f"{block}.mlp.fc2", width, inner)
    return shapes


def _pair(config: Config, name: str = "patch_size", default: int = 16) -> tuple[int, int]:
    found = config.get(name, default)
    return (found, found) if isinstance(found, int) else (found[0], found[1])


def _scores(width: str, default: int) -> Callable[[Config], Shapes]:
    return lambda config: {"score.weight": (labels(config), config.get(width, default))}


def _spans(width: str, default: int) -> Callable[[Config], Shapes]:
    return lambda config: linear("qa_outputs", 2, config.get(width, default))


def _tokens(width: str, default: int, rows: int, *, tied: bool) -> Callable[[Config], Shapes]:
    def head(config: Config) -> Shapes:
        if config.get("tie_word_embeddings", tied):
            return {}
        return {"lm_head.weight": (config.get("vocab_size", rows), config.get(width, default))}

    return head


def _classes(config: Config) -> Shapes:
    return linear("classifier", labels(config), config.get("hidden_size", 768))


def _decoder_heads(rows: int) -> dict[str, Callable[[Config], Shapes]]:
    return {
        "text-classification": _scores("hidden_size", 4096),
        "causal-language-modelling": _tokens("hidden_size", 4096, rows, tied=False),
    }


_FAMILIES: dict[str, tuple[Callable[[Config], Shapes], dict[str, Callable[[Config], Shapes]]]] = {
    "distilbert": (
        _distilbert,
        {"text-classification": _distilbert_classifier, "question-answering": _spans("dim", 768)},
    ),
    "gpt2": (
        _gpt2,
        {
            "text-classification": _scores("n_embd", 768),
            "causal-language-modelling": _tokens("n_embd", 768, 50257, tied=True),
        },
    ),
    "llama": (_llama, _decoder_heads(32000)),
    "mistral": (_mistral, _decoder_heads(32000)),
    "qwen2": (_llama, _decoder_heads(151936)),
    "vit": (_vit, {"image-classification": _classes}),
}
