"""From document to trials, pairing and estimate; what cannot work is refused before anything is spent."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, BertModel

from mergenet_core.errors import (
    DataRefused,
    MergeNetError,
    ModelRefused,
    PairingRefused,
    PathRefused,
    SpecInvalid,
    TooLarge,
)
from mergenet_core.planning.make_plan import make_plan
from mergenet_core.records.record import now
from mergenet_core.records.workers import Device, WorkerInfo
from mergenet_core.spec.parse import parse
from mergenet_core.storage.paths import Roots

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog", "sun"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    source = home / "models" / "source"
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(source)
    (source / "vocab.txt").write_text("\n".join(WORDS))
    other = home / "models" / "other-words"
    other.mkdir()
    (other / "vocab.txt").write_text("\n".join(f"word{row}" for row in range(8)))
    (home / "data").mkdir()
    for split in ("train", "test"):
        (home / "data" / f"{split}.jsonl").write_text(
            '{"text": "cat", "label": "yes"}\n{"text": "dog", "label": "no"}\n'
        )
    (home / "data" / "table.csv").write_text("words,label\ncat,yes\n")
    (home / "data" / "empty.jsonl").touch()
    (home / "data" / "folder").mkdir()
    (home / "data" / "notes.docx").write_text("x")
    (home / "data" / "broken.jsonl").write_text("nope\n")
    (home / "data" / "deep.jsonl").write_text("[" * 100_000 + "\n")
    (home / "data" / "spreadsheet.csv").write_text("text,label\ncat,yes\ndog,no\n", encoding="utf-8-sig")
    return home


@pytest.fixture
def document() -> dict[str, Any]:
    config = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {
        "name": "a job",
        "source": {"model": {"path": "source"}},
        "target": {
            "model": {"config": config | {"intermediate_size": 12}},
            "task": "text-classification",
            "data": {"train": "train.jsonl", "test": "test.jsonl"},
        },
        "transfer": {"method": "project"},
        "train": {"steps": 10},
        "arms": ["transfer", "control", "sham"],
        "seeds": [0, 1],
    }


@pytest.fixture
def plan(home: Path) -> Callable[..., Any]:
    def make(document: dict[str, Any], *workers: WorkerInfo, roots: Roots | None = None) -> Any:
        roots = roots or Roots(models=(home / "models",), data=(home / "data",))
        return make_plan(parse(document), roots, home, workers)

    return make


def worker(memory_bytes: int) -> WorkerInfo:
    return WorkerInfo(
        name="w",
        host="h",
        state="idle",
        device="cpu",
        devices=(Device(id="0", name="cpu", memory_bytes=memory_bytes),),
        memory_bytes=memory_bytes,
        cpus=2,
        seen_at=now(),
    )


def test_a_plan_pairs_and_estimates(plan: Callable[..., Any], document: dict[str, Any]) -> None:
    made = plan(document, worker(10**10))
    assert [trial.id for trial in made.trials][:3] == ["transfer-0", "control-0", "sham-0"]
    assert made.trials[-1].kind == "finalize"
    assert len(made.trials[-1].needs) == 6
    assert "vocabulary" in made.pairing.anchored_axes
    assert made.estimate.steps == 60
    assert made.notes == ()
    json.dumps(made.model_dump(mode="json"))


def test_auto_is_a_trial_for_each_way_and_the_sham_waits_for_the_best(
    plan: Callable[..., Any], document: dict[str, Any]
) -> None:
    made = plan(put(document, "transfer/method", "auto"))
    tried = ("transfer-0-project", "transfer-0-project-embeddings")
    assert [trial.id for trial in made.trials][:4] == [*tried, "control-0", "sham-0"]
    assert {trial.id: trial.needs for trial in made.trials[:4]} == {
        tried[0]: (), tried[1]: (), "control-0": (), "sham-0": tried,
    }  # fmt: skip
    assert made.estimate.steps == 80


def test_auto_tries_one_way_where_the_models_are_not_known_yet(
    plan: Callable[..., Any], document: dict[str, Any], home: Path
) -> None:
    document["source"]["model"] = {"hub": "some/model", "revision": "0" * 40}
    document["target"]["model"]["tokenizer"] = "source"
    roots = Roots(models=(home / "models",), data=(home / "data",), hub=True)
    made = plan(put(document, "transfer/method", "auto"), roots=roots)
    assert made.pairing is None
    assert [trial.id for trial in made.trials if trial.seed == 0 and trial.arm == "transfer"] == ["transfer-0-auto"]


def test_a_byte_order_mark_is_no_part_of_a_column(plan: Callable[..., Any], document: dict[str, Any]) -> None:
    document["target"]["data"]["train"] = "spreadsheet.csv"
    assert plan(document).pairing is not None


def test_a_source_that_is_trained_first_comes_before_all_arms_but_the_control(
    plan: Callable[..., Any], document: dict[str, Any]
) -> None:
    config = {"model_type": "mergenet-mlp", "image_size": 8, "hidden_sizes": [16]}
    data = {"train": "folder-of-images", "test": "other-images", "image_size": 8}
    document["target"] |= {"task": "image-classification", "model": {"config": config}, "data": data}
    document["source"] = {"model": {"config": config}, "data": data, "train": {"steps": 5}}
    with pytest.raises(PathRefused, match="folder-of-images"):
        plan(document)
    document["target"]["data"] = document["source"]["data"] = data | {
        "train": "train.jsonl",
        "test": "test.jsonl",
        "image": "text",
    }
    made = plan(document)
    assert made.trials[0].id == "source"
    assert {trial.arm: trial.needs for trial in made.trials if trial.kind == "arm"} == {
        "transfer": ("source",), "control": (), "sham": ("source",),
    }  # fmt: skip
    assert "labels" in made.pairing.anchored_axes


def put(document: dict[str, Any], pointer: str, value: object) -> dict[str, Any]:
    document = copy.deepcopy(document)
    *parents, last = pointer.split("/")
    node = document
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = value
    return document


@pytest.mark.parametrize(
    ("pointer", "value", "error", "sentence"),
    [
        ("source/model/path", "../secret", PathRefused, "outside the model roots"),
        ("source/model/path", "none", PathRefused, "does not exist"),
        ("source/model", {"hub": "org/name", "revision": "0" * 40}, PathRefused, "does not open the hub"),
        ("target/data/train", "/etc/passwd", PathRefused, "outside the data roots"),
        ("target/data/train", "empty.jsonl", DataRefused, "is empty"),
        ("target/data/train", "folder", DataRefused, "folder is empty"),
        ("target/data/train", "notes.docx", DataRefused, "is not read; give .parquet"),
        ("target/data/train", "broken.jsonl", DataRefused, "first line of broken.jsonl is not JSONL"),
        ("target/data/train", "deep.jsonl", DataRefused, "first line of deep.jsonl is not JSONL"),
        ("target/data/train", "table.csv", DataRefused, "has no column 'text'; it has words, label"),
        ("target/data/label", "lable", DataRefused, "has no column 'lable'"),
        ("target/model/config/model_type", "skynet", ModelRefused, "model_type 'skynet' cannot learn"),
        ("target/model/config/auto_map", {"AutoModel": "x"}, ModelRefused, "code of its own"),
        ("target/model/config/hidden_size", "wide", SpecInvalid, "not a positive whole number"),
        ("target/model/config/hidden_size", -8, SpecInvalid, "not a positive whole number"),
        ("target/model/config/num_hidden_layers", 10**9, SpecInvalid, "is more than 1000"),
        ("target/model/config/intermediate_size", 5_000_000, TooLarge, "the largest worker, w, has"),
        ("target/model/tokenizer", "other-words", PairingRefused, "vocabulary is not shared"),
        ("transfer/rank", 4000, PairingRefused, "is above the narrowest paired axis"),
        ("arms", ["transfer", "control", "distill"], SpecInvalid, "transfer.distill.teacher is missing"),
    ],
)
def test_what_cannot_work_is_refused(
    plan: Callable[..., Any],
    document: dict[str, Any],
    pointer: str,
    value: object,
    error: type[MergeNetError],
    sentence: str,
) -> None:
    with pytest.raises(error, match=sentence):
        plan(put(document, pointer, value), worker(10**9))


UNLABELLED_JOB = {
    "arms": ["transfer", "control", "distill"],
    "transfer": {"method": "project", "distill": {"teacher": {"steps": 4, "batch_size": 1}}},
}


@pytest.mark.parametrize(
    ("name", "error", "sentence"),
    [
        ("none.jsonl", PathRefused, "target.data.unlabelled.*does not exist"),
        ("empty.jsonl", DataRefused, "target.data.unlabelled: empty.jsonl is empty"),
        ("table.csv", DataRefused, "target.data.unlabelled: table.csv has no column 'text'"),
        (".", DataRefused, r"target.data.unlabelled: . and target.data.train \(train.jsonl\) share files"),
    ],
)
def test_unlabelled_inputs_that_cannot_be_used_are_refused(
    plan: Callable[..., Any], document: dict[str, Any], name: str, error: type[MergeNetError], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        plan(put(document | UNLABELLED_JOB, "target/data/unlabelled", name))


def test_unlabelled_inputs_need_no_label_and_their_batch_is_estimated(
    plan: Callable[..., Any], document: dict[str, Any], home: Path
) -> None:
    (home / "data" / "pool.jsonl").write_text(json.dumps({"text": "a cat"}) + "\n")
    job = put(document | UNLABELLED_JOB, "target/data/unlabelled", "pool.jsonl")

    def activations(**settings: float) -> int:
        distill = UNLABELLED_JOB["transfer"]["distill"] | settings
        return plan(put(job, "transfer/distill", distill)).estimate.under("single").activations

    alone = activations(pool_batch_size=64)  # KD with weight 1 reads no labelled batch
    assert activations(weight=0.5) == alone  # 32 labelled examples, and as many unlabelled ones by default
    assert activations(pool_batch_size=96) == pytest.approx(1.5 * alone, abs=2)


def test_a_teacher_is_estimated_with_what_it_computes_in_a_step(
    plan: Callable[..., Any], document: dict[str, Any]
) -> None:
    def held(**changes: Any) -> int:
        return plan(document | changes).estimate.under("single").transfer

    teacher = {"distill": {"teacher": {"steps": 4, "batch_size": 1}}}
    made = plan(document | {"arms": ["transfer", "control"], "transfer": teacher})
    without = made.estimate.under("single").transfer
    weights = 4 * made.estimate.source_parameters
    assert held(**UNLABELLED_JOB) > without + weights
    larger = held(**UNLABELLED_JOB | {"train": document["train"] | {"batch_size": 64}})
    once = held(**UNLABELLED_JOB) - without - weights
    assert larger - without - weights == pytest.approx(2 * once, abs=2), "twice the inputs of a step"


def test_a_text_model_from_scratch_needs_a_tokenizer(
    plan: Callable[..., Any], document: dict[str, Any], home: Path
) -> None:
    bare = home / "models" / "bare"
    config = BertConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    BertModel(config).save_pretrained(bare)
    with pytest.raises(SpecInvalid, match="needs a tokenizer"):
        plan(put(document, "source/model/path", "bare"))


def test_a_job_larger_than_the_disk_is_refused(plan: Callable[..., Any], document: dict[str, Any]) -> None:
    with pytest.raises(TooLarge, match="are free; free some disk"):
        plan(put(document, "target/model/config/hidden_size", 4_000_000))  # there is no worker to compare with


QUESTIONS = {"question": "what ?", "context": "cat", "answers": {"text": [], "answer_start": []}}
SQUAD = {"version": "v2.0", "data": [{"paragraphs": [{"context": "cat", "qas": []}]}]}


@pytest.fixture
def asking(home: Path, document: dict[str, Any]) -> dict[str, Any]:
    for name, content in (("squad", SQUAD), ("rows", [QUESTIONS]), ("other", [{"question": "what ?"}])):
        (home / "data" / f"{name}.json").write_text(json.dumps(content))
    (home / "data" / "questions.jsonl").write_text(json.dumps(QUESTIONS) + "\n")
    data = {"train": "squad.json", "test": "rows.json", "validation": "questions.jsonl"}
    return put(put(document, "target/task", "question-answering"), "target/data", data)


def test_questions_are_planned_with_the_head_that_they_need(plan: Callable[..., Any], asking: dict[str, Any]) -> None:
    made = plan(asking)
    assert made.notes == ("no worker is running: memory was not compared with a machine",)
    assert {"qa_outputs.weight", "qa_outputs.bias"} <= set(made.pairing.unpaired)
    assert not any("pooler" in name for name in made.pairing.unpaired)


@pytest.mark.parametrize(
    ("pointer", "value", "error", "sentence"),
    [
        ("target/data/train", "other.json", DataRefused, "other.json has no column 'context'; it has question"),
        ("target/data/train", "train.jsonl", DataRefused, "train.jsonl has no column 'question'; it has text, label"),
        ("arms", ["transfer", "control", "distill"], SpecInvalid, "the source has no head for question-answering"),
        ("target/task", "causal-language-modelling", ModelRefused, "a bert reads the tokens that it is to predict"),
        ("target/model/config/model_type", "resnet", ModelRefused, "'resnet' cannot learn question-answering"),
        ("source/task", "question-answering", SpecInvalid, "source.task is what the source is trained on"),
    ],
)
def test_what_a_text_task_cannot_work_with_is_refused(
    pointer: str,
    value: object,
    error: type[MergeNetError],
    sentence: str,
    plan: Callable[..., Any],
    asking: dict[str, Any],
) -> None:
    changed = put(asking, pointer, value)
    if value == "causal-language-modelling":
        changed["target"]["data"] = {"train": "train.jsonl", "test": "test.jsonl"}
    with pytest.raises(error) as refused:
        plan(changed)
    messages = [refused.value.message, *(fault.message for fault in refused.value.errors)]
    assert any(sentence in message for message in messages), messages


def test_a_source_of_another_task_is_checked_by_its_own_and_teaches_only_with_a_head(
    plan: Callable[..., Any], asking: dict[str, Any], document: dict[str, Any], home: Path
) -> None:
    learned = {
        "model": {"config": document["target"]["model"]["config"], "tokenizer": "source"},
        "task": "question-answering",
        "data": asking["target"]["data"],
        "train": {"steps": 5},
    }
    crossing = document | {"source": learned}
    made = plan(crossing)
    assert made.trials[0].id == "source"
    assert "bert.encoder.layer.0.attention.self.query.weight" in {pair.target for pair in made.pairing.pairs}
    assert "labels" not in made.pairing.anchored_axes
    with pytest.raises(SpecInvalid, match="the source has no head for the target's labels"):
        plan(crossing | {"arms": ["transfer", "control", "distill"]})
    (home / "data" / "texts.jsonl").write_text((home / "data" / "train.jsonl").read_text())
    wrong = put(crossing, "source/data/train", "texts.jsonl")
    with pytest.raises(DataRefused, match=r"source.data.train: texts.jsonl has no column 'question'"):
        plan(wrong)
