import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergenet_core.architectures.shapes import shapes_from_config
from mergenet_core.errors import PairingRefused
from mergenet_core.model_files.model_info import ModelInfo, Vocabulary
from mergenet_core.pairing.pair import Pairing, pair
from mergenet_core.spec.job import TransferSpec

LABELS = ("ant", "bee", "cat")


def bert(width=32, layers=6, heads=4, vocabulary="words", labels=None, prefix=True):
    config = {"model_type": "bert", "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    config |= {"intermediate_size": 4 * width, "vocab_size": 100, "max_position_embeddings": 20, "num_labels": 3}
    shapes = shapes_from_config(config)
    if not prefix:
        shapes = {name.removeprefix("bert."): shape for name, shape in shapes.items() if "classifier" not in name}
    return ModelInfo(config, shapes, vocabulary and Vocabulary(vocabulary), labels)


def mlp(sizes=(16, 16), image_size=4, labels=LABELS):
    config = {"model_type": "mergenet-mlp", "image_size": image_size, "num_channels": 1, "hidden_sizes": sizes}
    return ModelInfo(config, shapes_from_config(config | {"num_labels": len(labels)}), None, labels)


def cnn(channels=(8, 12), kernel_size=3, num_channels=1, labels=LABELS):
    config = {"model_type": "mergenet-cnn", "num_channels": num_channels, "channels": channels}
    config |= {"kernel_size": kernel_size, "num_labels": len(labels)}
    return ModelInfo(config, shapes_from_config(config), None, labels)


def vit(patch_size=2, published=False):
    width, block = 8, "vit.encoder.layer.0." if published else "vit.layers.0."
    attention = ("attention.query", "attention.key", "attention.value", "output.dense")
    attention = attention if published else ("q_proj", "k_proj", "v_proj", "o_proj")
    shapes = {"vit.embeddings.cls_token": (1, 1, width), "vit.embeddings.position_embeddings": (1, 5, width)}
    shapes["vit.embeddings.patch_embeddings.projection.weight"] = (width, 1, patch_size, patch_size)
    shapes |= {f"{block}attention.{part}.weight": (width, width) for part in attention}
    shapes[block + ("intermediate.dense.weight" if published else "mlp.fc1.weight")] = (4 * width, width)
    config = {"model_type": "vit", "image_size": 2 * patch_size, "patch_size": patch_size, "num_channels": 1}
    return ModelInfo(config | {"num_attention_heads": 2}, shapes)


def sources(pairing: Pairing) -> dict[str, str]:
    return {entry.target: entry.source for entry in pairing.pairs}


def test_encoder_layers_pair_evenly_spaced_with_the_last_included():
    found = sources(pair(bert(layers=6, prefix=False), bert(16, layers=2), TransferSpec()))
    assert found["bert.encoder.layer.0.output.dense.weight"] == "encoder.layer.2.output.dense.weight"
    assert found["bert.encoder.layer.1.output.dense.weight"] == "encoder.layer.5.output.dense.weight"
    found = sources(pair(bert(layers=6), bert(16, layers=3), TransferSpec()))
    assert [found[f"bert.encoder.layer.{k}.output.dense.bias"].split(".")[3] for k in range(3)] == ["1", "3", "5"]


@settings(deadline=None)  # what a machine under load takes for it says nothing
@given(theirs=st.integers(1, 13), ours=st.integers(1, 13))
def test_layers_pair_one_to_one_in_order_at_any_depths(theirs, ours):
    name = "encoder.layer.{}.intermediate.dense.weight"
    found = sources(pair(bert(8, theirs, 2, prefix=False), bert(8, ours, 2, prefix=False), TransferSpec()))
    layers = [(k, int(found[name.format(k)].split(".")[2])) for k in range(ours) if name.format(k) in found]
    assert len(layers) == min(theirs, ours)
    assert layers[-1] == (ours - 1, theirs - 1)
    assert [theirs for _, theirs in layers] == sorted({theirs for _, theirs in layers})


def test_what_does_not_pair_says_why():
    pairing = pair(bert(prefix=False), bert(16, layers=2), TransferSpec())
    assert pairing.unpaired == {
        "classifier.weight": "the source has no weight of this role",
        "classifier.bias": "the source has no weight of this role",
    }
    pairing = pair(bert(labels=LABELS), bert(16, layers=2, labels=("x", "y", "z")), TransferSpec())
    assert "labels is not shared" in pairing.unpaired["classifier.weight"]
    pairing = pair(bert(layers=1), bert(16, layers=2), TransferSpec())
    assert pairing.unpaired["bert.encoder.layer.0.output.dense.weight"] == "the source has only 1 layers"
    pairing = pair(mlp((16, 16, 16)), mlp((8, 8)), TransferSpec())
    assert "a layer between has no counterpart" in pairing.unpaired["head.weight"]
    named = TransferSpec(method="lpka", pairs=[{"source": "head.weight", "target": "head.weight"}])
    assert pair(mlp(), mlp(), named).unpaired["head.bias"] == "not named in transfer.pairs"
    assert pair(cnn(), cnn(), TransferSpec()).unpaired == {}


def test_axes_are_anchored_where_they_mean_the_same():
    assert pair(bert(), bert(16, 2), TransferSpec()).anchored_axes == ("vocabulary", "positions", "specials")
    pairing = pair(bert(labels=LABELS), bert(16, 2, labels=("cat", "ant")), TransferSpec())
    assert pairing.axes["labels"].order == (2, 0)
    assert pair(mlp(), mlp((8, 8)), TransferSpec()).anchored_axes == ("pixels", "labels")
    assert pair(cnn(), cnn((4, 6)), TransferSpec()).anchored_axes == ("channels-in", "labels")


def test_a_config_from_scratch_may_leave_defaults_out():
    target = ModelInfo({"model_type": "mergenet-cnn", "channels": [4, 6]}, cnn((4, 6)).shapes)
    assert pair(cnn(), target, TransferSpec()).anchored_axes == ("channels-in",)
    listed = vit()
    listed = ModelInfo(dict(listed.config) | {"image_size": [4, 4]}, listed.shapes)
    assert pair(listed, listed, TransferSpec()).anchored_axes == ("patches", "class-token", "places")


def test_auto_takes_the_method_that_measures_best_for_the_anatomy():
    assert pair(bert(), bert(16, 2), TransferSpec()).method == "project"
    assert pair(mlp(), mlp((8, 8)), TransferSpec()).method == "anchored"
    assert pair(cnn(), cnn((4, 6)), TransferSpec()).method == "project"


def test_roberta_and_bert_do_not_count_positions_alike():
    roberta = bert(16, 2)
    roberta = ModelInfo(dict(roberta.config) | {"model_type": "roberta"}, roberta.shapes, Vocabulary("words"))
    pairing = pair(bert(), roberta, TransferSpec())
    assert "positions counted alike" in pairing.unpaired["bert.embeddings.position_embeddings.weight"]


def test_distilbert_pairs_with_bert():
    rename = {
        "bert.encoder.layer": "distilbert.transformer.layer", "attention.self.query": "attention.q_lin",
        "attention.self.key": "attention.k_lin", "attention.self.value": "attention.v_lin",
        "attention.output.dense": "attention.out_lin", "attention.output.LayerNorm": "sa_layer_norm",
        "intermediate.dense": "ffn.lin1", "output.dense": "ffn.lin2", "output.LayerNorm": "output_layer_norm",
        "bert.embeddings": "distilbert.embeddings", "bert.pooler.dense": "pre_classifier",
    }  # fmt: skip
    shapes = {}
    for name, shape in bert(16, 2).shapes.items():
        for theirs, mine in rename.items():
            name = name.replace(theirs, mine) if mine not in name else name
        if "token_type" not in name:
            shapes[name] = shape
    distilbert = ModelInfo({"model_type": "distilbert", "n_heads": 4}, shapes, Vocabulary("words"))
    pairing = pair(bert(), distilbert, TransferSpec())
    assert set(pairing.unpaired) == {"classifier.weight", "classifier.bias"}
    assert pairing.axes["queries.0"].heads == (4, 4)


def test_vision_transformers_pair_by_patches_whichever_way_their_layers_are_spelt():
    pairing = pair(vit(published=True), vit(), TransferSpec())
    assert pairing.unpaired == {}
    assert (
        sources(pairing)["vit.layers.0.attention.o_proj.weight"] == "vit.encoder.layer.0.attention.output.dense.weight"
    )
    assert pairing.anchored_axes == ("patches", "class-token", "places")
    assert pairing.basis == "vit.embeddings.patch_embeddings.projection.weight"
    with pytest.raises(PairingRefused, match="the same patch size and image channels"):
        pair(vit(4), vit(), TransferSpec())


def test_kernels_of_another_size_do_not_pair_and_end_the_chain():
    source, target = cnn((8, 12), 5), cnn((4, 6), 3)
    with pytest.raises(PairingRefused, match="kernel 3×3 here, 5×5 in the source"):
        pair(source, target, TransferSpec())


def test_a_part_of_the_model_can_be_left_out():
    source, target = bert(labels=LABELS), bert(16, 2, labels=LABELS)
    roles = {part: {entry.role for entry in pair(source, target, TransferSpec(include=part)).pairs} for part in
             ("all", "embeddings", "body", "no-head")}  # fmt: skip
    assert all(role.startswith("embeddings.") for role in roles["embeddings"])
    assert roles["body"] == roles["all"] - roles["embeddings"]
    assert roles["all"] - roles["no-head"] == {"head.weight", "head.bias"}
    assert pair(source, target, TransferSpec(include="body")).basis == "bert.embeddings.word_embeddings.weight"
    with pytest.raises(PairingRefused, match=r"include: embeddings.*include: all"):
        pair(mlp(), mlp((8, 8)), TransferSpec(include="embeddings"))


def test_the_rank_is_a_quarter_of_the_narrower_matrix_and_at_least_four():
    ranks = {entry.target: entry.rank for entry in pair(bert(128, 6), bert(64, 2), TransferSpec()).pairs}
    assert ranks["bert.embeddings.word_embeddings.weight"] == 16
    assert ranks["bert.embeddings.token_type_embeddings.weight"] == 2
    assert ranks["bert.embeddings.LayerNorm.weight"] is None
    ranks = {entry.target: entry.rank for entry in pair(cnn(), cnn((4, 6)), TransferSpec(rank=4)).pairs}
    assert (ranks["blocks.1.conv.weight"], ranks["head.weight"]) == (4, 3)


def test_transferable_parameters_are_those_that_are_written():
    source, target = mlp((16, 16)), mlp((8, 8))
    assert pair(source, target, TransferSpec(method="project")).transferable_parameters == 8 * 17 + 8 * 9 + 3 * 9
    wider = pair(source, mlp((20, 20)), TransferSpec(method="project"))
    assert wider.transferable_parameters == 16 * 17 + 16 * 17 + 3 * 17


@pytest.mark.parametrize(
    ("source", "target", "spec", "sentence"),
    [
        (
            bert(), bert(16, 2, vocabulary="others"), {},
            r"vocabulary is not shared.*0 entries.*same tokenizer.*method: lpka",
        ),
        (bert(vocabulary=None), bert(16, 2, vocabulary=None), {"method": "anchored"}, "vocabulary is not shared"),
        (mlp(), mlp((8,), image_size=8), {}, r"pixels is not shared.*the same image size"),
        (cnn(), cnn(num_channels=3), {}, r"channels-in is not shared.*the same image channels"),
        (bert(), mlp(), {}, r"source \(encoder\), target \(mlp\).*allow_unanchored"),
        (ModelInfo({"model_type": "gpt2"}, {"wte.weight": (9, 9)}), mlp(), {}, r"source .*'gpt2'.*no known roles"),
        (mlp(), ModelInfo({"model_type": "t5"}, {}), {}, r"target .*'t5'.*no known roles.*known are encoders"),
        (mlp(), mlp((8, 8)), {"rank": 9}, r"rank 9 is above the narrowest paired axis, 8; use 8 or less"),
        (
            mlp(), mlp(), {"method": "lpka", "pairs": [{"source": "layer.*", "target": "*"}]},
            r"pairs.0.source: 'layer.\*'",
        ),
        (
            mlp(), mlp(), {"method": "lpka", "pairs": [{"source": "layers.0.weight", "target": "layers.*"}]},
            "counts equal",
        ),
        (
            mlp(), mlp(), {"method": "lpka", "pairs": [{"source": "head.weight", "target": "head.weight"}] * 2},
            "head.weight more than once",
        ),
        (
            mlp(), mlp(), {"method": "lpka", "rank": 4, "pairs": [{"source": "head.weight", "target": "head.weight"}]},
            "rank 4 is above the narrowest",
        ),
    ],
)  # fmt: skip
def test_refusals_name_what_is_missing_and_what_helps(source, target, spec, sentence):
    with pytest.raises(PairingRefused, match=sentence):
        pair(source, target, TransferSpec(**spec))


def test_lpka_needs_no_shared_axis_and_leaves_vectors_out():
    pairing = pair(bert(vocabulary="other"), bert(16, 2), TransferSpec(method="lpka"))
    assert "bert.encoder.layer.0.output.dense.weight" in sources(pairing)
    assert pairing.unpaired["bert.embeddings.LayerNorm.bias"] == "a vector has no re-encoding"
    assert all(entry.rank is not None for entry in pairing.pairs)


def test_a_pairing_goes_through_json():
    for pairing in (pair(bert(), bert(16, 2), TransferSpec()), pair(cnn(), cnn((4, 6)), TransferSpec())):
        assert Pairing.model_validate_json(pairing.model_dump_json()) == pairing


def test_pairing_needs_no_torch():
    code = (
        "import sys, mergenet_core.pairing.pair, mergenet_core.architectures.shapes; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_labels_that_are_read_later_are_shared_where_both_heads_learn_the_same_column():
    source, target = (replace(bert(width, 2), label_column="topic") for width in (32, 16))
    assert "labels" in pair(source, target, TransferSpec()).anchored_axes
    other = replace(source, label_column="language")
    assert "labels" in pair(other, target, TransferSpec()).unshared


def test_whether_a_trained_heads_labels_are_those_of_the_data_is_left_to_training():
    target = replace(bert(16, 2), label_column="topic")
    pairing = pair(bert(labels=LABELS), target, TransferSpec())
    assert pairing.undecided == {
        "labels": "training shares it if each label in the data's column topic is one of the source's (ant, bee, cat)"
    }
    assert "labels" not in pairing.unshared
    assert pairing.unpaired["classifier.weight"].startswith("labels may be shared: training shares it if")
    # the same models as training sees them, once the data's labels are known
    assert "labels" in pair(bert(labels=LABELS), bert(16, 2, labels=("bee", "cat")), TransferSpec()).anchored_axes
