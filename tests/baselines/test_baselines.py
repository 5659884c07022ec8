"""Trivial baselines against values worked out by hand, and in whole trials."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, ViTConfig, ViTForImageClassification

from mergenet_core.baselines.inputs import question_alone
from mergenet_core.baselines.logistic import LabelledFeatures, accuracy_on_test, standardise
from mergenet_core.baselines.probe import pooled
from mergenet_core.baselines.words import tf_idf
from mergenet_core.models.builtin import MergeNetCnn, MergeNetCnnConfig
from mergenet_core.storage.paths import Roots
from mergenet_core.tasks.visual_question_answering.scores import PeoplesAnswers
from mergenet_core.tasks.visual_question_answering.vqa import Question
from tests.training.tiny import MLP, Recorder, image_job, run, text_job, write_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Roots:
    return write_world(tmp_path_factory.mktemp("world"))


def test_tf_idf_by_hand() -> None:
    train, other = tf_idf(["Red red cat", "red dog!"], ["dog bird", "a bird"])
    # columns cat, dog, red; of 2 texts red is in 2, the others in 1
    rare = np.log(3 / 2) + 1
    expected = np.array([[rare, 0, 2], [0, rare, 1]])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert train.toarray() == pytest.approx(expected)
    assert other.toarray() == pytest.approx(np.array([[0, 1, 0], [0, 0, 0]])), "words of train alone"


def test_the_regression_separates_what_is_separable_and_picks_its_penalty_on_validation() -> None:
    draw = np.random.default_rng(0)

    def split(count: int, flip: bool = False) -> LabelledFeatures:
        labels_n = draw.integers(0, 3, count)
        X_nd = draw.normal(size=(count, 5)) + 4 * np.eye(5)[labels_n]
        return LabelledFeatures(X_nd, (labels_n + flip) % 3)

    assert accuracy_on_test([split(60), split(30), split(300)], 3) > 0.95
    # noise in many features: only a strong penalty keeps the weights small, and validation finds it
    train, validation, test = (
        LabelledFeatures(draw.normal(size=(n, 80)), draw.integers(0, 2, n)) for n in (40, 400, 4000)
    )
    for part in (train, validation, test):
        part.X_nd[:, 0] += 1.5 * part.labels_n
    assert accuracy_on_test([train, validation, test], 2) > 0.6


def test_features_that_are_constant_in_training_count_for_nothing() -> None:
    train, test = standardise([np.array([[1.0, 5.0], [3.0, 5.0]]), np.array([[2.0, 9.0]])])
    assert train.tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    assert test.tolist() == [[0.0, 0.0]]


def test_the_question_alone_answers_as_most_people_did() -> None:
    def asked(text: str, answer: str) -> Question:
        return Question(text, PeoplesAnswers.of([answer] * 10), "")

    train = [asked("Which colour?", "red"), asked("which  colour?", "red"), asked("which colour?", "blue")]
    train += [asked("is it?", "yes")] * 4
    test = [asked("which colour?", "red"), asked("which colour?", "blue"), asked("new?", "yes"), asked("is it?", "no")]
    assert question_alone(train, test) == pytest.approx(2 / 4)


def test_padding_has_no_part_in_a_text_s_features(world: Roots) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(world.models[0] / "source").eval()
    ids = torch.tensor([[2, 5, 6, 3]])
    padded = torch.cat([ids, torch.zeros(1, 3, dtype=torch.long)], dim=1)
    with torch.no_grad():
        alone = pooled(model, {"input_ids": ids, "attention_mask": torch.ones(1, 4)})
        long = pooled(model, {"input_ids": padded, "attention_mask": (padded > 0).long()})
        hidden = model.bert(input_ids=ids).last_hidden_state
    assert torch.allclose(alone, hidden.mean(dim=1), atol=1e-6)
    assert torch.allclose(alone, long, atol=1e-5)


def test_images_have_the_mean_of_their_patches_or_a_built_in_head_s_input() -> None:
    X_bchw = torch.randn(2, 1, 8, 8)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    vit = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_channels=1, **sizes)).eval()
    cnn = MergeNetCnn(MergeNetCnnConfig(channels=(4, 6), num_labels=3)).eval()
    with torch.no_grad():
        assert pooled(vit, {"pixel_values": X_bchw}).shape == (2, 16)
        features = pooled(cnn, {"pixel_values": X_bchw})
        assert torch.equal(cnn.head(features), cnn(pixel_values=X_bchw).logits)


def test_the_control_has_the_baseline_of_the_inputs_and_the_transfer_the_probe(tmp_path, world: Roots) -> None:
    job = text_job(arms=["transfer", "control", "sham"], train__steps=2)
    found = {arm: run(job, f"{arm}-0", tmp_path, world).baselines for arm in ("control", "transfer", "sham")}
    assert found["sham"] == {}
    assert found["control"].keys() == {"tf-idf"}
    assert found["control"]["tf-idf"] > 0.8, "each text has two words of its topic"
    assert found["transfer"].keys() == {"probe"}
    assert 0.2 < found["transfer"]["probe"] <= 1


def test_the_source_reads_the_test_split_once_for_all_seeds(tmp_path, world: Roots, monkeypatch) -> None:
    job = text_job(arms=["transfer", "control"], train__steps=2, seeds=[0, 1])
    first = run(job, "transfer-0", tmp_path, world).baselines
    read: list[int] = []
    monkeypatch.setattr(
        "mergenet_core.baselines.probe.pooled", lambda model, inputs: read.append(1) or pooled(model, inputs)
    )
    run(job, "transfer-1", tmp_path, world)
    assert len(read) == 2, "the training and the validation split"
    assert run(job, "transfer-0", tmp_path / "anew", world).baselines == first


def test_texts_that_the_target_cuts_have_a_baseline_on_what_it_reads_and_one_on_the_whole(tmp_path, world) -> None:
    """Four tokens are two words between the special ones, so that most topics' words are cut off."""
    job = text_job(arms=["transfer", "control"], train__steps=2, target__data__max_length=4)
    found = run(job, "control-0", tmp_path, world).baselines
    assert found.keys() == {"tf-idf", "tf-idf-whole"}
    assert found["tf-idf"] < found["tf-idf-whole"] - 0.1


def test_images_have_a_baseline_on_pixels_and_a_probe_of_a_source_that_the_job_trains(tmp_path, world: Roots) -> None:
    job = image_job(MLP, train__steps=2)
    run(job, "source", tmp_path, world)
    assert run(job, "control-0", tmp_path, world).baselines["pixels"] > 0.8
    assert run(job, "transfer-0", tmp_path, world).baselines.keys() == {"probe"}


def test_a_source_that_is_too_large_is_left_out_with_an_event(tmp_path, world: Roots, monkeypatch) -> None:
    from mergenet_core.training import sources

    monkeypatch.setattr(sources, "PROBED_BYTES", 10)
    recorder = Recorder()
    assert run(text_job(train__steps=2), "transfer-0", tmp_path, world, recorder).baselines == {}
    assert ("baseline.left-out", True) in [(kind, "the limit is" in message) for kind, message in recorder.events]
