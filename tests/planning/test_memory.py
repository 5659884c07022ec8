"""Memory takes its sizes from the family, and the adapter of `lpka-raw` from what that method builds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mergenet_core.architectures.shapes import shapes_from_config
from mergenet_core.model_files.model_info import ModelInfo, Vocabulary
from mergenet_core.pairing.pair import pair
from mergenet_core.planning.memory import LearnerSpec, activations
from mergenet_core.planning.transfer_memory import transfer_memory
from mergenet_core.spec.job import DataSpec, ResourcesSpec, TrainSpec, TransferSpec
from mergenet_core.transfer.methods.lpka_raw import RawAdapter

LENGTH, SIZE = 64, 32
DATA = DataSpec(train="train.jsonl", test="test.jsonl", max_length=LENGTH, image_size=SIZE)
TRAIN = TrainSpec(steps=1, batch_size=1)


def kept(config: dict[str, Any], task: str, **resources: Any) -> int:
    """Numbers that the forward pass of one example keeps."""
    shapes = shapes_from_config(config, task)
    assert shapes is not None
    learner = LearnerSpec(ModelInfo(config, shapes), task, DATA, TRAIN)
    return activations(learner, ResourcesSpec(**resources)) // 4


def layer(width: int, inner: int, heads: int, length: int) -> int:
    """Numbers kept in a layer of an encoder: two for each output, and 2.25 for each head and pair of tokens."""
    return 2 * length * (5 * width + inner) + int(2.25 * heads * length**2)


def test_distilberts_heads_are_read() -> None:
    config = {"model_type": "distilbert", "dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 48, "vocab_size": 40}
    one = layer(24, 48, 3, LENGTH)
    assert kept(config, "text-classification") == 2 * one + 24 + 2 + one // 2
    checkpointed = one + 2 * 24 * LENGTH + 24 + 2 + one // 2
    assert kept(config, "text-classification", activation_checkpointing=True) == checkpointed


def test_gpt2s_width_and_heads_are_read_and_its_embeddings_keep_nothing() -> None:
    config = {"model_type": "gpt2", "n_embd": 24, "n_layer": 2, "n_head": 3, "vocab_size": 40}
    # queries, keys and values, the output, up and down: 3 + 1 + 4 + 1 widths
    one = 2 * LENGTH * 9 * 24 + int(2.25 * 3 * LENGTH**2)
    assert kept(config, "text-classification") == 2 * one + 2 + one // 2
    checkpointed = one + 2 * 24 * LENGTH + 2 + one // 2
    assert kept(config, "text-classification", activation_checkpointing=True) == checkpointed


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_over_the_vocabulary_counts_whether_it_is_tied_or_not(tied: bool) -> None:
    config = {"model_type": "gpt2", "n_embd": 24, "n_layer": 1, "n_head": 3, "vocab_size": 40}
    one = 2 * LENGTH * 9 * 24 + int(2.25 * 3 * LENGTH**2)
    found = kept(config | {"tie_word_embeddings": tied}, "causal-language-modelling")
    assert found == one + 3 * LENGTH * 40 + one // 2


def test_each_of_clips_towers_has_its_own_sizes() -> None:
    block = {"num_hidden_layers": 1, "intermediate_size": 48, "attention_dropout": 0.1}
    text = block | {"hidden_size": 24, "num_attention_heads": 3, "vocab_size": 40}
    image = block | {"hidden_size": 32, "num_attention_heads": 4, "image_size": SIZE, "patch_size": 8}
    config = {"model_type": "clip", "text_config": text, "vision_config": image, "projection_dim": 6}
    patches = (SIZE // 8) ** 2 + 1
    words, pixels = layer(24, 48, 3, LENGTH), layer(32, 48, 4, patches)
    assert kept(config, "image-text-retrieval") == words + pixels + 2 * 6 + max(words, pixels) // 2
    without = config | {"text_config": text | {"attention_dropout": 0.0}}
    assert kept(without, "image-text-retrieval") < kept(config, "image-text-retrieval")


def test_a_family_that_is_not_declared_is_estimated_by_common_names_alone() -> None:
    shapes = {"decoder.layers.0.fc1.weight": (48, 24), "decoder.layers.0.fc2.weight": (24, 48)}
    for heads, scores in ((3, 2.25 * 3 * LENGTH**2), ([3], 0)):
        info = ModelInfo({"model_type": "opt", "vocab_size": 40, "num_attention_heads": heads}, shapes)
        found = activations(LearnerSpec(info, "text-classification", DATA, TRAIN), ResourcesSpec())
        assert found == 4 * 1.5 * (2 * LENGTH * 72 + scores)


def test_a_vision_transformers_patches_have_the_librarys_size_where_the_config_leaves_it_out() -> None:
    block = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 48}
    config = {"model_type": "vit", "image_size": SIZE, **block}
    assert kept(config, "image-classification") == kept(config | {"patch_size": 16}, "image-classification")


def test_lpka_raw_counts_the_adapter_that_it_builds() -> None:
    source, target = (
        {"model_type": "bert", "hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 4}
        | {"intermediate_size": 2 * width, "vocab_size": 40, "max_position_embeddings": 9}
        for width in (32, 16)
    )
    models = [ModelInfo(config, shapes_from_config(config) or {}, Vocabulary("words")) for config in (source, target)]
    spec = TransferSpec(method="lpka-raw")
    pairing = pair(models[0], models[1], spec)
    held, exchanged = 0, 0
    for one in pairing.pairs:
        adapter = RawAdapter(one.target_shape, one.source_shape)  # type: ignore[arg-type]
        W_mn, S_MN = torch.randn(one.target_shape), torch.randn(one.source_shape)
        held += 4 * sum(weight.numel() for weight in adapter.parameters())  # with gradient and two moments
        held += S_MN.numel() + graph_numbers(adapter, W_mn, S_MN) + 3 * W_mn.numel()
        exchanged += 2 * W_mn.numel()
    found = transfer_memory(pairing, spec)
    assert found.exchanged == exchanged
    assert found.device_bytes == pytest.approx(4 * held, rel=0.01)


def graph_numbers(adapter: RawAdapter, W_mn: torch.Tensor, S_MN: torch.Tensor) -> int:
    """Numbers that autograd keeps for the adapter's backward pass, in addition to its parameters and its input."""
    own = {weight.untyped_storage().data_ptr() for weight in (*adapter.parameters(), S_MN)}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        adapter(W_mn, S_MN)
    return sum(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in saved.values())
