"""The projection between models of different families writes the pairs that pairing found."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from torch import nn

from mergenet_core.model_files.model_info import ModelInfo, Vocabulary
from mergenet_core.models.describe import model_info
from mergenet_core.pairing.pair import pair
from mergenet_core.spec.job import TransferSpec
from mergenet_core.transfer.cycle import Transfer, TransferSource
from mergenet_core.transfer.source_weights import SourceWeights
from tests.transfer.tiny import shards

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "dog", "sun", "##s", "##ing")
BLOCK = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = BLOCK | {"vocab_size": len(WORDS), "max_position_embeddings": 20}
IMAGE = BLOCK | {"image_size": 8, "patch_size": 4, "num_channels": 3}


def bert() -> nn.Module:
    return tf.BertModel(tf.BertConfig(**TEXT))


def known(model: nn.Module, words: tuple[str, ...] = WORDS) -> ModelInfo:
    vocabulary = Vocabulary("".join(words), {word: row for row, word in enumerate(words)})
    return model_info(model, vocabulary=vocabulary, labels=("ant", "bee"))


def projected(source: nn.Module, target: nn.Module, words: tuple[str, ...] = WORDS, **spec: Any) -> dict[str, Any]:
    """The target's weights after the start of a transfer."""
    wanted = TransferSpec(method="project", **spec)
    pairing = pair(known(source), known(target, words), wanted)
    Transfer(TransferSource(source.state_dict()), shards(target), pairing, wanted, steps=1, seed=0).start()
    return target.state_dict()


def test_a_fused_and_transposed_source_weight_is_read_slice_by_slice() -> None:
    source = tf.GPT2Model(tf.GPT2Config(n_embd=16, n_layer=2, n_head=4, n_positions=20, vocab_size=len(WORDS)))
    written, weights = projected(source, bert()), source.state_dict()
    fused = weights["h.1.attn.c_attn.weight"]
    assert torch.equal(written["encoder.layer.1.attention.self.value.weight"], fused[:, 32:].T)
    assert torch.equal(written["encoder.layer.0.intermediate.dense.weight"], weights["h.0.mlp.c_fc.weight"].T)
    slices = SourceWeights(weights, pair(known(source), known(bert()), TransferSpec()))
    assert len(slices) == len(weights) + 12
    assert slices["h.0.attn.c_attn.bias[16:32]"].shape == (16,)


def test_rows_without_a_counterpart_keep_their_values() -> None:
    source, target = bert(), bert()
    before = target.embeddings.word_embeddings.weight.detach().clone()
    words = ("Ġdog", "q1", "Ġcat", "q2", "s", "q3", "q4", "q5", "q6", "q7")
    after = projected(source, target, words)["embeddings.word_embeddings.weight"]
    rows = source.embeddings.word_embeddings.weight
    assert torch.equal(after[[0, 2, 4]], rows[[6, 5, 8]])
    kept = [1, 3, 5, 6, 7, 8, 9]
    assert torch.equal(after[kept], before[kept])


def test_each_tower_has_its_own_stream() -> None:
    config = tf.VisionTextDualEncoderConfig.from_vision_text_configs(
        tf.ViTConfig(**IMAGE), tf.BertConfig(**TEXT), projection_dim=6
    )
    source, target = tf.VisionTextDualEncoderModel(config), tf.VisionTextDualEncoderModel(config)
    written = projected(source, target)
    for name, W in source.state_dict().items():
        assert torch.equal(written[name], W), name


def test_resnets_of_equal_width_compute_the_same() -> None:
    config = tf.ResNetConfig(embedding_size=4, hidden_sizes=[8, 16], depths=[2, 1], num_labels=2)
    torch.manual_seed(0)
    source, target = (tf.ResNetForImageClassification(config).eval() for _ in range(2))
    projected(source, target)
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.allclose(source(pixels).logits, target(pixels).logits, atol=1e-5)


def test_without_shared_axes_units_are_selected_by_norm_if_the_job_allows_it() -> None:
    source = tf.ResNetForImageClassification(
        tf.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2], num_labels=2)
    )
    target = tf.MobileNetV2ForImageClassification(tf.MobileNetV2Config(depth_multiplier=0.35, num_labels=2))
    before = {name: W.clone() for name, W in target.state_dict().items()}
    written = projected(source, target, allow_unanchored=True)
    changed = {name for name, W in written.items() if not torch.equal(W, before[name])}
    assert "classifier.weight" in changed
    assert any("expand_1x1.convolution" in name for name in changed)


def llama(groups: int, heads: int = 4, width: int = 16) -> nn.Module:
    config = tf.LlamaConfig(**TEXT | {"hidden_size": width, "num_attention_heads": heads}, num_key_value_heads=groups)
    return tf.LlamaForCausalLM(config).eval()


def test_a_decoder_into_one_of_the_same_size_computes_what_the_source_does() -> None:
    source, target = llama(2), llama(2)
    projected(source, target)
    tokens = torch.randint(0, len(WORDS), (2, 6))
    assert torch.allclose(source(tokens).logits, target(tokens).logits, atol=1e-5)


def test_every_query_stays_with_the_keys_and_values_it_reads() -> None:
    source, target = llama(4, heads=8, width=32), llama(2, heads=4, width=32)
    with torch.no_grad():
        for layer in source.model.layers:  # the second and the last group are the ones to keep
            layer.self_attn.k_proj.weight.view(4, 4, 32)[[1, 3]] *= 5
    written, weights = projected(source, target), source.state_dict()
    name = "model.layers.0.self_attn.{}_proj.weight"
    assert torch.equal(
        written[name.format("k")].view(2, 8, 32)[:, [0, 4]], weights[name.format("k")].view(4, 4, 32)[[1, 3]][:, [0, 2]]
    )
    assert torch.equal(
        written[name.format("v")].view(2, 8, 32)[:, :4], weights[name.format("v")].view(4, 4, 32)[[1, 3]]
    )
    contexts = written[name.format("o")].view(32, 4, 8)[:, :, :4]
    assert torch.equal(contexts, weights[name.format("o")].view(32, 8, 4)[:, [2, 3, 6, 7]])


def test_an_encoder_fills_the_leading_query_of_each_group() -> None:
    source, target = bert(), llama(2)
    before = target.state_dict()["model.layers.0.self_attn.q_proj.weight"].clone()
    written = projected(source, target)["model.layers.0.self_attn.q_proj.weight"].view(4, 4, 16)
    kept = [bool(torch.equal(written[head], before.view(4, 4, 16)[head])) for head in range(4)]
    assert kept == [False, True, False, True]


def gpt2(width: int = 16) -> nn.Module:
    config = tf.GPT2Config(n_embd=width, n_layer=2, n_head=4, n_positions=20, vocab_size=len(WORDS))
    return tf.GPT2LMHeadModel(config).eval()


def test_fused_and_transposed_weights_of_a_target_are_written_in_place() -> None:
    source, target = gpt2(), gpt2()
    projected(source, target)
    tokens = torch.randint(0, len(WORDS), (2, 6))
    assert torch.allclose(source(tokens).logits, target(tokens).logits, atol=1e-5)
    source, target = bert(), gpt2()
    written, weights = projected(source, target), source.state_dict()
    fused = written["transformer.h.1.attn.c_attn.weight"]
    assert torch.equal(fused[:, 16:32], weights["encoder.layer.1.attention.self.key.weight"].T)
    bias = written["transformer.h.1.attn.c_attn.bias"]
    assert torch.equal(bias[32:], weights["encoder.layer.1.attention.self.value.bias"])
