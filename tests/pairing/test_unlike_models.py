"""Real models of unlike families, saved, read from outside, and paired."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from mergenet_core.architectures.read_structure import read_structure
from mergenet_core.errors import PairingRefused
from mergenet_core.model_files.model_info import ModelInfo, Vocabulary
from mergenet_core.model_files.read_model import inspect_model
from mergenet_core.models.describe import model_info
from mergenet_core.pairing.pair import Pairing, pair
from mergenet_core.spec.job import TransferSpec
from mergenet_core.transfer.source_weights import stored_slice

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "dog", "sun", "##s", "##ing", ",")
BLOCK = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
TEXT = BLOCK | {"vocab_size": len(WORDS), "max_position_embeddings": 20}
IMAGE = BLOCK | {"image_size": 8, "patch_size": 4, "num_channels": 3}
GPT2 = {"n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 20, "vocab_size": len(WORDS)}


def llama(**other: Any) -> tf.PreTrainedModel:
    return tf.LlamaForCausalLM(tf.LlamaConfig(**TEXT | {"num_key_value_heads": 2} | other))


def bert(**other: Any) -> tf.PreTrainedModel:
    return tf.BertModel(tf.BertConfig(**TEXT | other))


def gpt2(**other: Any) -> tf.PreTrainedModel:
    return tf.GPT2LMHeadModel(tf.GPT2Config(**GPT2 | other))


def resnet(depths: tuple[int, ...] = (2, 2), widths: tuple[int, ...] = (16, 32), kind: str = "bottleneck") -> Any:
    config = tf.ResNetConfig(embedding_size=8, hidden_sizes=list(widths), depths=list(depths), layer_type=kind)
    model = tf.ResNetForImageClassification(config)
    model.resnet.embedder.embedder.convolution = torch.nn.Conv2d(3, 8, 3, bias=False)  # as for small images
    return model


def mobilenet(**other: Any) -> tf.PreTrainedModel:
    config = tf.MobileNetV2Config(**{"depth_multiplier": 1.0, "image_size": 32} | other)
    return tf.MobileNetV2ForImageClassification(config)


def dual() -> tf.PreTrainedModel:
    config = tf.VisionTextDualEncoderConfig.from_vision_text_configs(
        tf.ViTConfig(**IMAGE), tf.BertConfig(**TEXT), projection_dim=6
    )
    return tf.VisionTextDualEncoderModel(config)


def vilt() -> tf.PreTrainedModel:
    return tf.ViltForQuestionAnswering(tf.ViltConfig(**TEXT | IMAGE, num_labels=3))


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., ModelInfo]:
    def save(model: tf.PreTrainedModel, words: tuple[str, ...] = WORDS) -> ModelInfo:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        model.save_pretrained(folder)
        (folder / "vocab.txt").write_text("\n".join(words))
        return inspect_model(folder)

    return save


def made(model: tf.PreTrainedModel, words: tuple[str, ...] = WORDS) -> ModelInfo:
    vocabulary = Vocabulary("".join(words), {word: row for row, word in enumerate(words)})
    return model_info(model, vocabulary=vocabulary, labels=("ant", "bee"))


def sources(pairing: Pairing) -> dict[str, str]:
    return {entry.target: entry.source for entry in pairing.pairs}


@pytest.mark.parametrize(
    "build",
    [
        bert, llama, gpt2, resnet, mobilenet, dual, vilt,
        lambda: tf.BertForMaskedLM(tf.BertConfig(**TEXT)),
        lambda: tf.BertForQuestionAnswering(tf.BertConfig(**TEXT)),
        lambda: tf.RobertaForSequenceClassification(tf.RobertaConfig(**TEXT)),
        lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**TEXT)),
        lambda: tf.ElectraForMaskedLM(tf.ElectraConfig(**TEXT, embedding_size=8)),
        lambda: tf.ElectraForSequenceClassification(tf.ElectraConfig(**TEXT, embedding_size=16)),
        lambda: tf.DistilBertForQuestionAnswering(tf.DistilBertConfig(dim=16, n_layers=2, n_heads=4, hidden_dim=24)),
        lambda: tf.DistilBertForMaskedLM(tf.DistilBertConfig(dim=16, n_layers=2, n_heads=4, hidden_dim=24)),
        lambda: tf.MistralForSequenceClassification(tf.MistralConfig(**TEXT, num_key_value_heads=2)),
        lambda: tf.Qwen2ForSequenceClassification(tf.Qwen2Config(**TEXT, num_key_value_heads=4)),
        lambda: tf.GPT2ForSequenceClassification(tf.GPT2Config(**GPT2)),
        lambda: tf.CLIPModel(tf.CLIPConfig(text_config=TEXT, vision_config=IMAGE, projection_dim=6)),
        lambda: tf.ViTForImageClassification(tf.ViTConfig(**IMAGE)),
        lambda: resnet((1, 1), (8, 16), "basic"),
    ],
)  # fmt: skip
def test_a_model_pairs_with_its_like_in_every_weight(build: Callable[[], tf.PreTrainedModel]) -> None:
    known = made(build())
    pairing = pair(known, known, TransferSpec(method="project"))
    unknown = {name: reason for name, reason in pairing.unpaired.items() if "under another name" not in reason}
    assert set(unknown) <= {"logit_scale"}
    assert {(entry.source, entry.source_stored) for entry in pairing.pairs} == {
        (entry.target, entry.target_stored) for entry in pairing.pairs
    }
    assert not any(axis.free for axis in pairing.axes.values())


def test_slices_of_a_fused_weight_are_cut_out_and_transposed() -> None:
    model = gpt2()
    pairing = pair(made(model), made(bert()), TransferSpec())
    found = {entry.target: entry for entry in pairing.pairs}
    key = found["encoder.layer.0.attention.self.key.weight"]
    assert key.source == "transformer.h.1.attn.c_attn.weight[16:32]"
    assert (key.source_shape, key.target_shape) == ((16, 16), (16, 16))
    W = model.state_dict()["transformer.h.1.attn.c_attn.weight"]
    assert key.source_stored is not None
    assert torch.equal(stored_slice(W, key.source_stored), W[:, 16:32].T)
    down = found["encoder.layer.1.output.dense.weight"]
    assert down.source == "transformer.h.2.mlp.c_proj.weight"
    assert down.source_stored is not None
    assert down.source_stored.transposed
    assert down.source_shape == (16, 64)


def test_grouped_queries_have_axes_and_heads_of_their_own(saved: Callable[..., ModelInfo]) -> None:
    pairing = pair(saved(bert()), saved(llama()), TransferSpec())
    axes = pairing.axes
    assert (axes["queries.0"].heads, axes["keys.0"].heads, axes["values.0"].heads) == ((4, 4), (4, 2), (4, 2))
    assert (axes["contexts.0"].heads, axes["contexts.0"].source) == ((4, 4), "contexts.0")
    assert {axes[name].follows for name in ("keys.0", "values.0", "contexts.0")} == {"queries.0"}
    assert (axes["queries.0"].rotary, axes["keys.0"].rotary, axes["values.0"].rotary) == (True, True, False)
    assert axes["keys.0"].target_size == 8
    folded = pair(made(llama(num_key_value_heads=4)), made(bert()), TransferSpec()).axes
    assert "keys.0" not in folded
    assert "contexts.0" not in folded


def test_an_encoder_and_a_decoder_share_what_does_the_same_work() -> None:
    pairing = pair(made(bert()), made(llama()), TransferSpec())
    found = sources(pairing)
    assert found["model.embed_tokens.weight"] == "embeddings.word_embeddings.weight"
    assert found["lm_head.weight"] == "embeddings.word_embeddings.weight"
    assert found["model.layers.1.mlp.gate_proj.weight"] == "encoder.layer.1.intermediate.dense.weight"
    assert "not gated" in pairing.unpaired["model.layers.1.mlp.up_proj.weight"]
    # a norm goes with the one that feeds the same part
    assert found["model.layers.0.input_layernorm.weight"] == "embeddings.LayerNorm.weight"
    assert found["model.layers.1.input_layernorm.weight"] == "encoder.layer.0.output.LayerNorm.weight"
    assert (
        found["model.layers.1.post_attention_layernorm.weight"] == "encoder.layer.1.attention.output.LayerNorm.weight"
    )
    assert found["model.norm.weight"] == "encoder.layer.1.output.LayerNorm.weight"
    back = pair(made(llama()), made(bert()), TransferSpec())
    assert "which no weight holds" in back.unpaired["embeddings.position_embeddings.weight"]
    assert sources(back)["embeddings.LayerNorm.weight"] == "model.layers.0.input_layernorm.weight"
    assert back.unpaired["embeddings.LayerNorm.bias"] == "the source has no weight of this role"


def test_a_tied_head_is_written_with_its_embedding_only() -> None:
    pairing = pair(made(llama()), made(gpt2()), TransferSpec())
    assert "lm_head.weight" not in sources(pairing)
    assert pairing.unpaired["lm_head.weight"] == "it is transformer.wte.weight under another name"
    pairing = pair(made(llama()), made(llama()), TransferSpec())
    assert sources(pairing)["lm_head.weight"] == "lm_head.weight"
    masked = tf.BertForMaskedLM(tf.BertConfig(**TEXT))
    assert pair(made(masked), made(masked), TransferSpec()).unpaired == {
        "cls.predictions.decoder.weight": "it is bert.embeddings.word_embeddings.weight under another name",
        "cls.predictions.decoder.bias": "it is cls.predictions.bias under another name",
    }


def test_a_tower_pairs_with_a_plain_source_and_the_other_has_a_reason(saved: Callable[..., ModelInfo]) -> None:
    pairing = pair(saved(bert()), saved(dual()), TransferSpec())
    assert all(entry.target.startswith("text_model.") for entry in pairing.pairs)
    assert "patches" in pairing.unpaired["vision_model.embeddings.cls_token"]
    assert pairing.axes["stream"].basis == "embeddings.word_embeddings.weight"
    vit = tf.ViTForImageClassification(tf.ViTConfig(**IMAGE))
    pairing = pair(saved(vit), saved(dual()), TransferSpec())
    assert all(entry.target.startswith("vision_model.") for entry in pairing.pairs)


def test_towers_of_two_models_pair_each_with_its_own_axes() -> None:
    pairing = pair(made(dual()), made(dual()), TransferSpec())
    assert pairing.axes["stream@text_model"].basis == "text_model.embeddings.word_embeddings.weight"
    vision = pairing.axes["stream@vision_model"]
    assert (vision.basis, vision.basis_form) == (
        "vision_model.embeddings.patch_embeddings.projection.weight",
        "convolution",
    )
    assert pairing.axes["values.1@vision_model"].follows == "queries.1@vision_model"
    assert "joint" in pairing.axes


def test_a_fusion_encoder_learns_from_text_or_from_images() -> None:
    from_text = pair(made(bert()), made(vilt()), TransferSpec())
    assert from_text.axes["stream"].basis == "embeddings.word_embeddings.weight"
    assert "vilt.embeddings.patch_embeddings.projection.weight" in from_text.unpaired
    vit = tf.ViTForImageClassification(tf.ViTConfig(**IMAGE))
    from_images = pair(made(vit), made(vilt()), TransferSpec())
    assert from_images.axes["stream"].basis == "vit.embeddings.patch_embeddings.projection.weight"
    assert "vilt.encoder.layer.0.output.dense.weight" in sources(from_images)


def test_a_narrow_embedding_is_an_axis_of_its_own() -> None:
    electra = tf.ElectraForMaskedLM(tf.ElectraConfig(**TEXT, embedding_size=8))
    axes = pair(made(electra), made(electra), TransferSpec()).axes
    assert (axes["embedded"].basis, axes["embedded"].target_size) == ("electra.embeddings.word_embeddings.weight", 8)
    assert (axes["stream"].basis, axes["stream"].basis_form) == ("electra.embeddings_project.weight", "matrix")
    pairing = pair(made(bert()), made(electra), TransferSpec())
    assert sources(pairing)["electra.embeddings.word_embeddings.weight"] == "embeddings.word_embeddings.weight"
    assert "no map arrives" in pairing.unpaired["electra.encoder.layer.0.attention.self.query.weight"]


def test_resnets_of_another_width_and_depth_are_carried_from_the_stem_to_the_head() -> None:
    source, target = made(resnet((3, 4), (32, 64))), made(resnet())
    pairing = pair(source, target, TransferSpec())
    found = sources(pairing)
    block = "resnet.encoder.stages.{}.layers.{}.layer.0.convolution.weight"
    assert found[block.format(0, 0)] == block.format(0, 0)
    assert found[block.format(0, 1)] == block.format(0, 2)
    assert found[block.format(1, 1)] == block.format(1, 3)
    assert not any(axis.free for axis in pairing.axes.values())
    assert list(pairing.axes)[:4] == ["stem", "channels-in", "stage.0", "inner.0"]


def test_without_a_shortcut_a_stage_goes_on_with_the_axis_before() -> None:
    (structure,) = read_structure(made(resnet((1, 1), (8, 16), "basic")).shapes)
    axes = {part.name: part.out for part in structure.weights}
    assert axes["resnet.encoder.stages.0.layers.0.layer.1.convolution.weight"] == "stem"
    assert axes["resnet.encoder.stages.1.layers.0.layer.1.convolution.weight"] == "stage.1"


@pytest.mark.parametrize("expands", [True, False])
def test_a_stage_begins_where_an_image_is_halved_however_narrow_it_is(expands: bool) -> None:
    narrow, wide = (
        mobilenet(depth_multiplier=width, first_layer_is_expansion=expands, finegrained_output=False)
        for width in (0.25, 1.0)
    )
    blocks = narrow.mobilenet_v2.layer
    assert [block.use_residual for block in blocks[:3]] == [False, True, False]
    assert blocks[0].conv_3x3.convolution.in_channels == blocks[1].conv_3x3.convolution.in_channels
    assert len({block.reduce_1x1.convolution.out_channels for block in blocks[:5]}) == 1
    axes = [{part.name: part.out for part in read_structure(made(model).shapes)[0].weights} for model in (narrow, wide)]
    assert axes[0] == axes[1]
    pairing = pair(made(wide), made(narrow), TransferSpec())
    assert not pairing.unpaired
    assert ("stem.inner" in pairing.axes) is not expands


def test_cnns_of_unlike_blocks_share_the_stem_unless_unanchored_pairs_are_allowed() -> None:
    source, target = made(resnet()), made(mobilenet())
    pairing = pair(source, target, TransferSpec())
    assert {entry.role for entry in pairing.pairs} >= {"stem.conv", "stem.norm.weight"}
    depthwise = "mobilenet_v2.layer.9.conv_3x3.convolution.weight"
    assert pairing.unpaired[depthwise] == "the source has no weight of this role"
    expand = "mobilenet_v2.layer.9.expand_1x1.convolution.weight"
    assert pairing.unpaired[expand] == "no map arrives on its input axis stage.3"
    free = pair(source, target, TransferSpec(allow_unanchored=True))
    assert "block.in.conv" in {entry.role for entry in free.pairs}
    assert free.axes["stem"].how == "carried"
    assert free.axes["inner.15"].how == "free"
    assert free.axes["last"].how == "carried"  # from the labels
    reason = free.unpaired["mobilenet_v2.layer.15.reduce_1x1.convolution.weight"]
    assert "a layer between has no counterpart" in reason


def test_cnns_that_share_no_axis_are_refused_with_what_helps() -> None:
    wide = tf.ResNetForImageClassification(tf.ResNetConfig(embedding_size=8, hidden_sizes=[16], depths=[1]))
    with pytest.raises(PairingRefused, match=r"kernel 3×3 here, 7×7 in the source.*allow_unanchored: true"):
        pair(made(wide), made(mobilenet()), TransferSpec())


def test_a_vision_transformer_and_a_cnn_say_what_they_share() -> None:
    vit = tf.ViTForImageClassification(tf.ViTConfig(**IMAGE))
    source, target = made(vit), made(resnet())
    with pytest.raises(PairingRefused, match=r"channels-in is not shared.*Shared are labels.*allow_unanchored"):
        pair(source, target, TransferSpec())
    free = pair(source, target, TransferSpec(allow_unanchored=True))
    assert sources(free) == {"classifier.1.weight": "classifier.weight", "classifier.1.bias": "classifier.bias"}
    with pytest.raises(PairingRefused, match="no residual stream"):
        pair(target, source, TransferSpec(allow_unanchored=True))
    by_attention = pair(target, source, TransferSpec(method="lpka"))
    assert sources(by_attention) == {"classifier.weight": "classifier.1.weight"}


def test_other_tokenizers_are_an_anchor_where_enough_entries_are_alike(saved: Callable[..., ModelInfo]) -> None:
    theirs = saved(bert())
    words = ("<s>", "</s>", "Ġcat", "ing", "Ġmoon", ",", "Ġthe", "x1", "x2", "x3", "x4", "x5")
    pairing = pair(theirs, saved(bert(), words), TransferSpec())
    axis = pairing.axes["vocabulary"]
    assert axis.cover == (0, 1, 2, 3, 5, 6)
    assert [WORDS[row] for row in axis.order or ()] == ["[CLS]", "[SEP]", "cat", "##ing", ",", "the"]
    assert (axis.how, axis.shared_size) == ("names", 6)
    assert "50% of the target's" in axis.because
    rows = next(entry for entry in pairing.pairs if entry.role == "embeddings.word")
    assert rows.parameters == 6 * 16
    with pytest.raises(PairingRefused, match=r"1 entries of the target's tokenizer, 8%.*10% is the least"):
        pair(theirs, saved(bert(), ("cat", *(f"y{row}" for row in range(11)))), TransferSpec())


def test_a_long_order_is_left_out_of_what_is_kept() -> None:
    words = tuple(f"word{row}" for row in range(3000))
    mine = made(bert(vocab_size=3000), words[::-1])
    pairing = pair(made(bert(vocab_size=3000), words), mine, TransferSpec())
    assert pairing.axes["vocabulary"].order == tuple(range(3000))[::-1]
    brief = pairing.brief().axes["vocabulary"]
    assert (brief.order, brief.cover, brief.shared_size, brief.how) == (None, None, 3000, "names")
    assert len(json.dumps(pairing.brief().model_dump(mode="json"))) < 40_000


def test_what_a_method_cannot_write_is_reported_in_the_pairing() -> None:
    with pytest.raises(
        PairingRefused, match=r"transposed or fused with others, which project writes and lpka does not"
    ):
        pair(made(bert()), made(gpt2()), TransferSpec(method="lpka"))
    pairing = pair(made(bert()), made(bert()), TransferSpec(method="lpka"))
    assert "a row for each entry" in pairing.unpaired["embeddings.word_embeddings.weight"]
    assert not any(entry.form == "embedding" for entry in pairing.pairs)
    with pytest.raises(PairingRefused, match=r"share keys and values; name transfer.method: project"):
        pair(made(bert()), made(llama()), TransferSpec(method="anchored"))
