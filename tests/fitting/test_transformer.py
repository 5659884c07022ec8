"""The closed-form fit of transformers, on tiny models of every family."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from mergenet_core.architectures.read_structure import read_structure
from mergenet_core.fitting.context import Boundary, Chunk, FitContext, FitModel, Solved
from mergenet_core.fitting.transformer.solve import fit_transformer
from mergenet_core.spec.job import TransferSpec
from mergenet_core.tasks.task import Batch
from mergenet_core.transfer.methods.project import stream_map
from mergenet_core.transfer.sham import shuffled
from tests.transfer import tiny

VOCABULARY, LENGTH = 40, 10
Make = Callable[[int, int, int, int], nn.Module]
"""A model of a width, layers, heads and a seed."""


def bert(width: int, layers: int, heads: int, seed: int = 0) -> nn.Module:
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=2 * width, max_position_embeddings=LENGTH, num_labels=3, initializer_range=0.25,
    )  # fmt: skip
    return _made(BertForSequenceClassification, config, seed)


def distilbert(width: int, layers: int, heads: int, seed: int = 0) -> nn.Module:
    config = DistilBertConfig(
        vocab_size=VOCABULARY, dim=width, n_layers=layers, n_heads=heads, hidden_dim=2 * width,
        max_position_embeddings=LENGTH, num_labels=3, initializer_range=0.25,
    )  # fmt: skip
    return _made(DistilBertForSequenceClassification, config, seed)


def electra(width: int, layers: int, heads: int, seed: int = 0) -> nn.Module:
    config = ElectraConfig(
        vocab_size=VOCABULARY, hidden_size=width, embedding_size=width // 2, num_hidden_layers=layers,
        num_attention_heads=heads, intermediate_size=2 * width, max_position_embeddings=LENGTH, num_labels=3,
        initializer_range=0.25,
    )  # fmt: skip
    return _made(ElectraForSequenceClassification, config, seed)


def gpt2(width: int, layers: int, heads: int, seed: int = 0) -> nn.Module:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=width, n_layer=layers, n_head=heads, n_positions=LENGTH, num_labels=3,
        initializer_range=0.25, pad_token_id=0,
    )  # fmt: skip
    return _made(GPT2ForSequenceClassification, config, seed)


def llama(width: int, layers: int, heads: int, seed: int = 0) -> nn.Module:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads // 2, intermediate_size=2 * width, max_position_embeddings=LENGTH, num_labels=3,
        initializer_range=0.25, pad_token_id=0,
    )  # fmt: skip
    return _made(LlamaForSequenceClassification, config, seed)


def vit(width: int, layers: int, heads: int, seed: int = 0, patch: int = 2) -> nn.Module:
    config = ViTConfig(
        image_size=8, patch_size=patch, num_channels=1, hidden_size=width, num_hidden_layers=layers, num_labels=3,
        num_attention_heads=heads, intermediate_size=2 * width, initializer_range=0.25,
    )  # fmt: skip
    return _made(ViTForImageClassification, config, seed)


FAMILIES = [bert, distilbert, electra, gpt2, llama, vit]


def _made(kind: Callable[..., nn.Module], config: object, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return kind(config).eval()


def compressible(model: nn.Module, directions: int = 6) -> nn.Module:
    """The same with inputs that spread over a few directions only, so that a narrower stream can hold them."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, W in model.named_parameters():
            if name.endswith(("word_embeddings.weight", "wte.weight", "embed_tokens.weight", "projection.weight")):
                basis = torch.linalg.qr(
                    torch.randn(len(W) if W.ndim > 2 else W.shape[1], directions, generator=generator)
                ).Q
                mixed = 2 * (basis @ basis.T @ W.flatten(1) if W.ndim > 2 else W @ basis @ basis.T)
                W.copy_(mixed.view(W.shape))
    return model


def texts(count: int, seed: int = 0) -> Batch:
    """Random words of a skewed frequency, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = (torch.rand(count, LENGTH, generator=generator).square() * (VOCABULARY - 1)).long() + 1
    lengths = torch.randint(4, LENGTH + 1, (count, 1), generator=generator)
    mask = (torch.arange(LENGTH) < lengths).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def pictures(count: int, seed: int = 0) -> Batch:
    """Smooth random pictures."""
    small = torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return {"pixel_values": nn.functional.interpolate(small, size=8, mode="bilinear")}


def inputs_of(model: nn.Module, count: int = 192, seed: int = 0) -> Batch:
    return pictures(count, seed) if isinstance(model, ViTForImageClassification) else texts(count, seed)


def context(source: nn.Module, target: nn.Module, columns: tuple[int, ...] | None = None) -> FitContext:
    inputs = inputs_of(source)
    split = {name: value.split(64) for name, value in inputs.items()}
    batches = [{name: values[k] for name, values in split.items()} for k in range(len(next(iter(split.values()))))]
    models = [fit_model(model) for model in (source, target)]
    return FitContext(*models, [Chunk(batch, batch) for batch in batches], lambda tensor: tensor, 0, columns)


def fit_model(model: nn.Module) -> FitModel:
    info = tiny.facts(model)
    return FitModel(model, read_structure(info.shapes, info.config)[0])


def cosine_at(boundary: Boundary, source: nn.Module, target: nn.Module, inputs: Batch) -> float:
    """How alike both models are at a boundary, on tokens, with the source mapped."""
    h, x = (_output(model, name, inputs) for model, name in ((source, boundary.source), (target, boundary.target)))
    z = (h - boundary.mean_s) @ boundary.map_st + boundary.offset_t
    found: Tensor = torch.cosine_similarity(x, z, dim=-1)[_mask(inputs, x)]
    return float(found.mean())


def _mask(inputs: Batch, x: Tensor) -> Tensor:
    return inputs["attention_mask"].bool() if "attention_mask" in inputs else torch.ones(x.shape[:2]).bool()


def _output(model: nn.Module, name: str, inputs: Batch) -> Tensor:
    kept: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_hook(lambda *call: kept.append(call[2]))
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    return kept[0]


def last_boundary(parts: Sequence[Solved]) -> Boundary:
    return next(part.boundary for part in reversed(parts) if part.boundary is not None)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_target_built_like_the_source_computes_what_it_does(family: Make) -> None:
    source, target = family(16, 2, 2, 0), family(16, 2, 2, 1)
    list(fit_transformer(context(source, target, columns=(0, 1, 2))))
    held_out = inputs_of(source, seed=1)
    with torch.no_grad():
        wanted, found = source(**held_out)["logits"], target(**held_out)["logits"]
    assert (found - wanted).square().mean() < 0.05 * wanted.var()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_narrower_and_shallower_target_follows_the_source_on_inputs_it_has_not_seen(family: Make) -> None:
    source, target, held_out = (
        compressible(family(32, 4, 4, 0)),
        family(16, 2, 2, 1),
        inputs_of(family(4, 1, 2), seed=1),
    )
    boundary = last_boundary(list(fit_transformer(context(source, target))))
    untouched = cosine_at(boundary, source, family(16, 2, 2, 1), held_out)
    assert cosine_at(boundary, source, target, held_out) > max(0.3, untouched + 0.3)


def test_a_fit_follows_the_source_more_closely_than_a_projection_of_its_weights() -> None:
    source, target, projected = compressible(bert(32, 4, 4)), bert(16, 2, 2, 1), bert(16, 2, 2, 1)
    boundary, held_out = last_boundary(list(fit_transformer(context(source, target)))), texts(192, seed=1)
    tiny.transfer(source, projected, TransferSpec(method="project")).start()
    words = source.bert.embeddings.word_embeddings.weight  # type: ignore[union-attr]
    mix_lt = stream_map(words, 16).mix_lt
    assert mix_lt is not None
    its_own = replace(boundary, mean_s=torch.zeros(32), map_st=mix_lt)
    fitted = cosine_at(boundary, source, target, held_out)
    assert fitted > cosine_at(its_own, source, projected, held_out) + 0.1


def test_a_shuffled_source_gives_another_target() -> None:
    source, sham, target, of_sham = compressible(bert(32, 4, 4)), bert(32, 4, 4), bert(16, 2, 2, 1), bert(16, 2, 2, 1)
    with torch.no_grad():
        for name, W in sham.named_parameters():
            W.copy_(shuffled(source.get_parameter(name), name, seed=0))
    boundary, held_out = last_boundary(list(fit_transformer(context(source, target)))), texts(192, seed=1)
    list(fit_transformer(context(sham, of_sham)))
    assert cosine_at(boundary, source, of_sham, held_out) < cosine_at(boundary, source, target, held_out) - 0.3


@pytest.mark.parametrize("family", [bert, gpt2, llama, vit])
def test_processes_with_different_chunks_write_the_same_as_one_with_all(family: Make) -> None:
    source, alone = family(16, 2, 2, 0), family(8, 2, 2, 1)
    whole = context(source, alone, columns=(0, 1, 2))
    list(fit_transformer(whole))
    targets, sum_ = [family(8, 2, 2, 1) for _ in range(2)], _sum_of_two()
    sources = [copy.deepcopy(source) for _ in range(2)]
    parts = [
        replace(whole, source=fit_model(own), target=fit_model(target), chunks=chunks, sum_=sum_)
        for own, target, chunks in zip(sources, targets, (whole.chunks[:1], whole.chunks[1:]), strict=True)
    ]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda part: list(fit_transformer(part)), parts))
    for name, W in alone.state_dict().items():
        for target in targets:
            torch.testing.assert_close(target.state_dict()[name], W, rtol=1e-4, atol=1e-5, msg=name)


def _sum_of_two() -> Callable[[Tensor], Tensor]:
    """Sums the tensors of two threads, in place."""
    barrier, given = threading.Barrier(2, timeout=30), list[Tensor]()

    def sum_(tensor: Tensor) -> Tensor:
        given.append(tensor.clone())
        barrier.wait()
        total = given[0] + given[1]
        if barrier.wait() == 0:
            given.clear()
        barrier.wait()
        return tensor.copy_(total)

    return sum_


@pytest.mark.parametrize("family", [bert, gpt2, vit])
def test_a_fit_that_goes_on_from_any_part_ends_as_one_that_was_not_interrupted(family: Make) -> None:
    source, whole = family(16, 2, 2, 0), family(8, 2, 2, 1)
    names = [part.name for part in fit_transformer(context(source, whole, columns=(0, 1, 2)))]
    for start in range(1, len(names) + 1):
        target = family(8, 2, 2, 1)
        first = fit_transformer(context(source, target, columns=(0, 1, 2)))
        for _ in range(start):
            next(first)
        first.close()
        again = fit_transformer(context(source, target, columns=(0, 1, 2)), start=start)
        assert [part.name for part in again] == names[start:]
        for name, W in whole.state_dict().items():
            assert torch.equal(target.state_dict()[name], W), (start, name)


def test_a_vision_transformer_that_cuts_images_into_other_patches_follows_the_source() -> None:
    source, target = vit(16, 2, 2), vit(16, 2, 2, 1, patch=4)
    parts = list(fit_transformer(context(source, target)))
    assert all(part.error < 0.9 for part in parts)
    assert parts[0].error < 0.5


def test_a_fit_leaves_a_pooler_and_a_head_for_other_labels_as_they_are() -> None:
    target = bert(8, 2, 2, 1)
    before = {name: W.clone() for name, W in target.state_dict().items()}
    target.train()
    list(fit_transformer(context(bert(16, 2, 2), target)))
    kept = {name for name, W in target.state_dict().items() if torch.equal(W, before[name])}
    assert {"bert.pooler.dense.weight", "classifier.weight"} <= kept
    assert not any(name.startswith("bert.encoder") for name in kept)
    assert target.training
