import numpy
import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    RobertaConfig,
    ViTConfig,
)

from mergenet_core.model_files.model_info import ModelInfo
from mergenet_core.pairing.pair import pair
from mergenet_core.spec.job import TransferSpec
from mergenet_core.transfer.cycle import Transfer, TransferSource
from mergenet_core.transfer.methods.project import project
from tests.transfer.tiny import (
    LABELS,
    WORDS,
    applied,
    bert,
    cnn,
    context,
    facts,
    logits,
    mlp,
    paired,
    shards,
    transfer,
    vit,
)

PROJECT = TransferSpec(method="project")
FAMILIES = pytest.mark.parametrize("build", [bert, mlp, cnn])


@pytest.mark.parametrize("build", [bert, vit, mlp, cnn])
def test_a_target_of_the_source_s_architecture_becomes_the_source(build):
    source, target = build(seed=0), build(seed=1)
    assert not torch.allclose(logits(source), logits(target))
    transfer(source, target, PROJECT).start()
    torch.testing.assert_close(logits(target), logits(source), atol=1e-6, rtol=1e-5)


def permuted(model, build):
    """The same function with its hidden units, heads or filters in another order."""
    reordered = build(seed=0)
    weights = {name: W.clone() for name, W in model.state_dict().items()}
    for name in list(weights):
        if build is mlp and name.startswith("layers.") and name.endswith("weight"):
            layer = int(name.split(".")[1])
            order = torch.arange(len(weights[name]) - 1, -1, -1)
            after = f"layers.{layer + 1}.weight"
            after = after if after in weights else "head.weight"
            for key in (name, f"layers.{layer}.bias"):
                weights[key] = weights[key][order]
            weights[after] = weights[after][:, order]
        if build is cnn and name.endswith("conv.weight"):
            block = int(name.split(".")[1])
            order = torch.arange(len(weights[name]) - 1, -1, -1)
            for key in [key for key in weights if key.startswith(f"blocks.{block}.") and weights[key].ndim > 0]:
                weights[key] = weights[key][order]
            after = f"blocks.{block + 1}.conv.weight"
            after = after if after in weights else "head.weight"
            weights[after] = weights[after][:, order]
        if build is bert and name.endswith("intermediate.dense.weight"):
            layer = name.removesuffix("intermediate.dense.weight")
            ffn = torch.arange(len(weights[name]) - 1, -1, -1)
            for key in (name, f"{layer}intermediate.dense.bias"):
                weights[key] = weights[key][ffn]
            weights[f"{layer}output.dense.weight"] = weights[f"{layer}output.dense.weight"][:, ffn]
            heads = torch.cat([torch.arange(8, 16), torch.arange(8)])
            for key in [key for key in weights if key.startswith(f"{layer}attention.self")]:
                weights[key] = weights[key][heads]
            weights[f"{layer}attention.output.dense.weight"] = weights[f"{layer}attention.output.dense.weight"][
                :, heads
            ]
    reordered.load_state_dict(weights)
    return reordered


@FAMILIES
def test_the_order_of_the_source_s_units_makes_no_difference(build):
    source = build(seed=0)
    reordered = permuted(source, build)
    torch.testing.assert_close(logits(reordered), logits(source), atol=1e-5, rtol=1e-5)
    smaller = {
        bert: {"width": 10, "layers": 1, "heads": 1, "inner": 7},
        mlp: {"sizes": (5, 4)},
        cnn: {"channels": (3, 5, 4)},
    }
    results = []
    for model in (source, reordered):
        target = build(**smaller[build], seed=2)
        transfer(model, target, PROJECT).start()
        results.append(logits(target))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-4)


def test_the_residual_stream_is_projected_as_the_equations_say():
    source, target = bert(16, 3, heads=4, inner=24), bert(10, 2, heads=2, inner=7, seed=1)
    weights = {name: W.double().numpy() for name, W in source.state_dict().items()}
    written = applied(project(context(source, target, PROJECT)), target)
    E = weights["bert.embeddings.word_embeddings.weight"]
    U, _, _ = numpy.linalg.svd((E - E.mean(0)).T, full_matrices=False)
    P = U[:, :10] * numpy.sign(U[abs(U[:, :10]).argmax(0), numpy.arange(10)])

    def check(name, expected):
        numpy.testing.assert_allclose(written[f"bert.{name}"].numpy(), expected, atol=1e-6)

    check("embeddings.word_embeddings.weight", E @ P)
    check("embeddings.position_embeddings.weight", weights["bert.embeddings.position_embeddings.weight"] @ P)
    check("embeddings.LayerNorm.bias", weights["bert.embeddings.LayerNorm.bias"] @ P)
    gain = weights["bert.embeddings.LayerNorm.weight"]
    check("embeddings.LayerNorm.weight", numpy.diag(P.T @ numpy.diag(gain) @ P))
    for layer_t, layer_l in ((0, 1), (1, 2)):  # evenly spaced, the last included
        block = f"bert.encoder.layer.{layer_l}."
        up, down = weights[f"{block}intermediate.dense.weight"], weights[f"{block}output.dense.weight"]
        size = numpy.linalg.norm(up @ P, axis=1) * numpy.linalg.norm(down, axis=0)
        kept = numpy.sort(numpy.argsort(-size)[:7])
        check(f"encoder.layer.{layer_t}.intermediate.dense.weight", up[kept] @ P)
        check(f"encoder.layer.{layer_t}.intermediate.dense.bias", weights[f"{block}intermediate.dense.bias"][kept])
        check(f"encoder.layer.{layer_t}.output.dense.weight", P.T @ down[:, kept])
        query, key = (weights[f"{block}attention.self.{part}.weight"].reshape(4, 4, 16) for part in ("query", "key"))
        size = numpy.linalg.norm(query, axis=(1, 2)) * numpy.linalg.norm(key, axis=(1, 2))
        heads = numpy.sort(numpy.argsort(-size)[:2])
        rows = numpy.concatenate([4 * head + numpy.arange(4) for head in heads])
        filled = [0, 1, 2, 3, 5, 6, 7, 8]  # heads of 5 rows hold heads of 4
        value = weights[f"{block}attention.self.value.weight"]
        numpy.testing.assert_allclose(
            written[f"bert.encoder.layer.{layer_t}.attention.self.value.weight"].numpy()[filled],
            value[rows] @ P,
            atol=1e-6,
        )


def test_a_vision_transformer_s_stream_is_mapped_by_its_patches():
    source, target = vit(12, 2), vit(4, 1, heads=1, inner=7, seed=1)
    weights = {name: W.double().numpy() for name, W in source.state_dict().items()}
    written = applied(project(context(source, target, PROJECT)), target)
    E = weights["vit.embeddings.patch_embeddings.projection.weight"].reshape(12, -1).T
    centred = E - E.mean(0)
    values, vectors = numpy.linalg.eigh(centred.T @ centred)
    P = vectors[:, ::-1][:, :4]
    assert values[-3:].min() > 1e-6  # four pixels a patch, centred: the patches span three axes
    patches = written["vit.embeddings.patch_embeddings.projection.weight"].reshape(4, -1).numpy()
    numpy.testing.assert_allclose(abs(patches[:3]), abs(P[:, :3].T @ E.T), atol=1e-6)
    for name in ("vit.embeddings.position_embeddings", "vit.embeddings.cls_token"):
        expected = abs(weights[name] @ P)[..., :3]
        numpy.testing.assert_allclose(abs(written[name].numpy())[..., :3], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "auto"),
    [
        (BertConfig, AutoModelForSequenceClassification),
        (RobertaConfig, AutoModelForSequenceClassification),
        (DistilBertConfig, AutoModelForSequenceClassification),
        (ViTConfig, AutoModelForImageClassification),
    ],
)
def test_every_weight_of_a_known_family_has_a_role(config, auto):
    model = auto.from_config(config(num_hidden_layers=2, n_layers=2, vocab_size=20, num_labels=3))
    assert paired(model, model, PROJECT).unpaired == {}


def test_attention_scores_keep_their_size_where_heads_are_of_another_width():
    source, target = bert(16, 1, heads=4), bert(16, 1, heads=2, seed=1)
    transfer(source, target, PROJECT).start()
    name = "bert.encoder.layer.0.attention.self.{}.weight"
    query, key = (target.state_dict()[name.format(part)] for part in ("query", "key"))
    their_query, their_key = (source.state_dict()[name.format(part)] for part in ("query", "key"))
    scores = query[:8].T @ key[:8] / 8**0.5  # a head of 8 rows holds the two heads of 4
    source_scores = sum(their_query[at : at + 4].T @ their_key[at : at + 4] / 4**0.5 for at in (0, 4))
    torch.testing.assert_close(scores, source_scores, atol=1e-6, rtol=1e-5)


def test_narrower_heads_keep_queries_with_keys_and_values_with_outputs():
    source, target = bert(16, 1, heads=2), bert(16, 1, heads=4, seed=1)
    written = applied(project(context(source, target, PROJECT)), target)
    weights, block = source.state_dict(), "bert.encoder.layer.0.attention."

    def source_rows(part):
        rows, target_rows = weights[f"{block}{part}"], written[f"{block}{part}"]
        target_rows = target_rows[:8] if "output" not in part else target_rows.T[:8]
        rows = rows if "output" not in part else rows.T
        scale = 2**0.5 if "query" in part else 1.0
        return [int((rows - row * scale).abs().sum(1).argmin()) for row in target_rows]

    assert source_rows("self.query.weight") == source_rows("self.key.weight")
    assert source_rows("self.value.weight") == source_rows("output.dense.weight")
    assert len(set(source_rows("self.query.weight"))) == 8


@pytest.mark.parametrize(("build", "wider"), [(mlp, {"sizes": (12, 11)}), (cnn, {"channels": (8, 9, 11)})])
def test_a_wider_target_computes_what_the_source_does(build, wider):
    source, target = build(seed=0), build(**wider, seed=1)
    transfer(source, target, PROJECT).start()
    torch.testing.assert_close(logits(target), logits(source), atol=1e-5, rtol=1e-4)


def test_head_rows_follow_the_names_of_the_labels():
    source, target = mlp(seed=0), mlp(seed=1, labels=2)
    target_facts = facts(target, ("cat", "ant"))
    pairing = pair(facts(source, LABELS), target_facts, PROJECT)
    Transfer(TransferSource(source.state_dict()), shards(target), pairing, PROJECT, steps=1, seed=0).start()
    torch.testing.assert_close(logits(target), logits(source)[:, [2, 0]], atol=1e-6, rtol=1e-5)


def test_filters_are_chosen_by_what_they_do_and_carried_with_their_statistics():
    source, target = cnn((6, 8)), cnn((3, 5), seed=1)
    source.state_dict()["blocks.0.conv.weight"][3] *= 0.3
    source.state_dict()["blocks.0.norm.weight"][3:5] *= -8.0
    source.state_dict()["blocks.0.norm.running_var"][4] = 900.0
    transfer(source, target, PROJECT).start()
    weights, written = source.state_dict(), target.state_dict()
    W, after = weights["blocks.0.conv.weight"], weights["blocks.1.conv.weight"]
    gain, variance = weights["blocks.0.norm.weight"], weights["blocks.0.norm.running_var"]
    score = (
        W.flatten(1).norm(dim=1) * gain.abs() / (variance + 1e-5).sqrt() * after.transpose(0, 1).flatten(1).norm(dim=1)
    )
    kept = score.argsort(descending=True)[:3].sort().values
    assert torch.equal(written["blocks.0.conv.weight"], W[kept])
    assert 3 in kept, "a small filter with a large gain does much"
    assert 4 not in kept, "one with a large gain and a larger deviation does little"
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(written[f"blocks.0.norm.{name}"], weights[f"blocks.0.norm.{name}"][kept])
    score = after[:, kept].flatten(1).norm(dim=1) * weights["blocks.1.norm.weight"].abs()
    score = score / (weights["blocks.1.norm.running_var"] + 1e-5).sqrt() * weights["head.weight"].norm(dim=0)
    second = score.argsort(descending=True)[:5].sort().values
    assert torch.equal(written["blocks.1.conv.weight"], after[second][:, kept])
    assert torch.equal(written["head.weight"], weights["head.weight"][:, second])


def test_what_is_not_paired_stays_as_it_was():
    source, target = bert(16, 2), bert(10, 3, heads=1, inner=7, seed=1)
    before = {name: W.clone() for name, W in target.state_dict().items()}
    pairing = pair(facts(source), facts(target, ("other", "names", "here")), PROJECT)
    Transfer(TransferSource(source.state_dict()), shards(target), pairing, PROJECT, steps=1, seed=0).start()
    for name, W in target.state_dict().items():
        assert torch.equal(W, before[name]) == (name in pairing.unpaired), name
    assert {"classifier.weight", "classifier.bias"} < pairing.unpaired.keys()


def test_position_rows_that_only_the_target_has_stay():
    weights = bert(16).state_dict()
    shorter = {name: W[:12] if "position" in name else W for name, W in weights.items()}
    target = bert(16, seed=1)
    before = target.state_dict()["bert.embeddings.position_embeddings.weight"].clone()
    shapes = {name: tuple(W.shape) for name, W in shorter.items()}
    pairing = pair(ModelInfo(bert(16).config.to_dict(), shapes, WORDS, LABELS), facts(target), PROJECT)
    Transfer(TransferSource(shorter), shards(target), pairing, PROJECT, steps=1, seed=0).start()
    after = target.state_dict()["bert.embeddings.position_embeddings.weight"]
    assert torch.equal(after[12:], before[12:])
    assert torch.equal(after[:12], shorter["bert.embeddings.position_embeddings.weight"])
