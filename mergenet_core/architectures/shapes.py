"""Names and shapes of a model from scratch, told from its config alone, so that a job can be paired without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from mergenet_core.architectures.cnn_shapes import cnn_shapes
from mergenet_core.architectures.cross_modal_shapes import clip_shapes, dual_shapes, vilt_shapes
from mergenet_core.architectures.transformer_shapes import Shapes, labels, linear, norm, transformer_shapes
from mergenet_core.spec.job import TaskName


def shapes_from_config(config: Mapping[str, Any], task: TaskName | None = None) -> Shapes | None:
    """Names and shapes of the model that its config describes, with the task's head; None for a family not known here.

    Without a task the head is a classifier's. A weight that is tied to another is told once.
    """
    family = {"bert": _bert, "mergenet-mlp": _mlp, "mergenet-cnn": _cnn}.get(str(config.get("model_type")))
    if family is None:
        return _cross_modal(config, task) or cnn_shapes(config) or transformer_shapes(config, task)
    shapes, head = family(config), _HEADS.get(task) if task is not None else None
    if head is None:
        return shapes
    body = {name: shape for name, shape in shapes.items() if not name.startswith(("bert.pooler.", "classifier."))}
    return body | head(config)


def _cross_modal(config: Mapping[str, Any], task: TaskName | None) -> Shapes | None:
    match config.get("model_type"), task:
        case "vilt", "visual-question-answering" | None:
            return vilt_shapes(config)
        case "clip", "image-text-retrieval" | None:
            return clip_shapes(config)
        case "vision-text-dual-encoder", "image-text-retrieval" | None:
            return dual_shapes(config, shapes_from_config)
    return None


def _bert(config: Mapping[str, Any]) -> Shapes:
    width, inner = config.get("hidden_size", 768), config.get("intermediate_size", 3072)
    shapes: Shapes = {
        "bert.embeddings.word_embeddings.weight": (config.get("vocab_size", 30522), width),
        "bert.embeddings.position_embeddings.weight": (config.get("max_position_embeddings", 512), width),
        "bert.embeddings.token_type_embeddings.weight": (config.get("type_vocab_size", 2), width),
        **norm("bert.embeddings.LayerNorm", width),
    }
    for layer in range(config.get("num_hidden_layers", 12)):
        block = f"bert.encoder.layer.{layer}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= linear(f"{block}.attention.{part}", width, width)
        shapes |= norm(f"{block}.attention.output.LayerNorm", width)
        shapes |= linear(f"{block}.intermediate.dense", inner, width)
        shapes |= linear(f"{block}.output.dense", width, inner)
        shapes |= norm(f"{block}.output.LayerNorm", width)
    return shapes | linear("bert.pooler.dense", width, width) | linear("classifier", labels(config), width)


def _span(config: Mapping[str, Any]) -> Shapes:
    return linear("qa_outputs", 2, config.get("hidden_size", 768))


def _words(config: Mapping[str, Any]) -> Shapes:
    width, vocabulary = config.get("hidden_size", 768), config.get("vocab_size", 30522)
    transform = "cls.predictions.transform"
    tied = config.get("tie_word_embeddings", True)
    return (
        {"cls.predictions.bias": (vocabulary,)}
        | ({} if tied else linear("cls.predictions.decoder", vocabulary, width))
        | linear(f"{transform}.dense", width, width)
        | norm(f"{transform}.LayerNorm", width)
    )


def _mlp(config: Mapping[str, Any]) -> Shapes:
    pixels = config.get("num_channels", 1) * config.get("image_size", 28) ** 2
    widths = [pixels, *config.get("hidden_sizes", (128, 128))]
    shapes: Shapes = {}
    for layer, (inputs, outputs) in enumerate(pairwise(widths)):
        shapes |= linear(f"layers.{layer}", outputs, inputs)
    return shapes | linear("head", labels(config), widths[-1])


def _cnn(config: Mapping[str, Any]) -> Shapes:
    kernel = config.get("kernel_size", 3)
    widths = [config.get("num_channels", 1), *config.get("channels", (16, 32))]
    shapes: Shapes = {}
    for block, (inputs, outputs) in enumerate(pairwise(widths)):
        shapes[f"blocks.{block}.conv.weight"] = (outputs, inputs, kernel, kernel)
        shapes |= norm(f"blocks.{block}.norm", outputs)
        shapes |= {f"blocks.{block}.norm.running_{name}": (outputs,) for name in ("mean", "var")}
        shapes[f"blocks.{block}.norm.num_batches_tracked"] = ()
    return shapes | linear("head", labels(config), widths[-1])


_HEADS: dict[TaskName, Callable[[Mapping[str, Any]], Shapes]] = {
    "question-answering": _span,
    "causal-language-modelling": _words,
    "masked-language-modelling": _words,
}
"""Heads of the BERT family that are no classifier's."""
