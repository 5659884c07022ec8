"""Questions become windows whose answers are at the file's offsets, in each of the file's forms."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch

from mergenet_core.errors import DataRefused
from mergenet_core.models.processors import load_tokenizer
from mergenet_core.spec.job import DataSpec
from mergenet_core.storage.paths import Roots
from mergenet_core.storage.published_folder import sha256
from mergenet_core.tasks.question_answering.task import ANSWER_TOKENS, best_span
from tests.tasks.examples import read_examples
from tests.tasks.words import squad_rows, write_squad, write_words
from tests.training.tiny import write_lines


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    write_words(tmp_path / "words")
    write_squad(tmp_path / "train-v2.0.json", 20, 1)
    write_squad(tmp_path / "dev-v2.0.json", 6, 2, things=8)
    return Roots((tmp_path,), (tmp_path,))


def load(roots: Roots, seed: int = 0, **data: Any) -> Any:
    spec = DataSpec(**({"train": "train-v2.0.json", "test": "dev-v2.0.json", "max_length": 24, "stride": 6} | data))
    return read_examples(
        "question-answering", spec, roots, seed=seed, tokenizer=load_tokenizer(roots.models[0] / "words")
    )


def everything(windows: Any) -> list[Any]:
    batch = windows.batch(torch.arange(len(windows)))
    return [{name: rows.tolist() for name, rows in batch.items()}, windows.question_n.tolist(), windows.questions]


def test_every_window_holds_the_answer_or_points_to_the_null_token(roots: Roots) -> None:
    windows = load(roots).test
    assert len(windows) > len(windows.questions), "the texts are longer than a window"
    batch = windows.batch(torch.arange(len(windows)))
    found: dict[int, set[str]] = {}
    for window, (start, end, null) in enumerate(windows.positions_n3.tolist()):
        assert int(batch["input_ids"][window, null]) == 2
        answer = ""
        if start != null:
            answer = windows.text(window, start, end)
            assert bool(batch["context"][window, start : end + 1].all())
        found.setdefault(int(windows.question_n[window]), set()).add(answer)
    for number, question in enumerate(windows.questions):
        wanted = set(question.answers[:1]) or {""}
        assert wanted <= found[number] <= wanted | {""}, question
    assert sum(bool(question.answers) for question in windows.questions[-18:]) == 12


def test_windows_cover_the_text_and_overlap_by_the_stride(roots: Roots) -> None:
    windows = load(roots).test
    mine = (windows.question_n == len(windows.questions) - 1).nonzero().flatten().tolist()
    spans = []
    for window in mine:
        positions = windows.batch(torch.tensor([window]))["context"][0].nonzero().flatten().tolist()
        spans.append([windows.text(window, position, position) for position in positions])
    words = spans[0]
    for span in spans[1:]:
        assert span[:6] == words[-6:]
        words += span[6:]
    assert "".join(words) == windows.questions[-1].context.replace(" ", "")


def test_an_answer_that_a_window_cuts_is_not_in_it(roots: Roots) -> None:
    words = " ".join(["cat"] * 11 + ["red", "blue", "green"] + ["dog"] * 9)
    answer = {"text": ["red blue green"], "answer_start": [words.index("red")]}
    rows = [{"question": "what ?", "context": words, "answers": answer}] * 5
    write_lines(roots.data[0] / "cut.jsonl", rows)
    windows = load(roots, max_length=18, stride=5, test="cut.jsonl").test
    mine = (windows.question_n == len(windows.questions) - 1).nonzero().flatten().tolist()
    found = [
        windows.text(window, int(start), int(end)) if start != null else ""
        for window, (start, end, null) in ((window, windows.positions_n3[window]) for window in mine)
    ]
    assert found == ["", "red blue green", ""], "the first window holds 13 words: one of the answer is missing"


def test_the_batch_is_what_the_tokenizer_makes_cut_to_the_longest(roots: Roots) -> None:
    task = load(roots, max_length=60, stride=10)
    index_b = torch.tensor([3, 0])
    asked = [task.train.questions[int(question)] for question in task.train.question_n[index_b]]
    expected = task.processor(
        [one.question for one in asked], [one.context for one in asked], padding=True, return_tensors="pt"
    )
    batch = task.train.batch(index_b)
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(batch[name], expected[name]), name
    assert set(batch) - task.targets == {"input_ids", "attention_mask", "token_type_ids"}


@pytest.mark.parametrize("form", ["jsonl", "parquet", "json"])
def test_tables_with_the_hubs_columns_give_the_same_windows(form: str, roots: Roots) -> None:
    expected = load(roots)
    for name, arguments in (("train", (20, 1)), ("test", (6, 2, 8))):
        rows = squad_rows(*arguments)
        path = roots.data[0] / f"{name}.{form}"
        if form == "parquet":
            datasets.Dataset.from_list(rows).to_parquet(path)
        elif form == "json":
            path.write_text(json.dumps(rows))
        else:
            write_lines(path, rows)
    found = load(roots, train=f"train.{form}", test=f"test.{form}")
    for split in ("train", "validation", "test"):
        assert everything(getattr(found, split)) == everything(getattr(expected, split))


def test_a_text_stays_on_one_side_and_limits_count_questions(roots: Roots) -> None:
    for seed in range(3):
        task = load(roots, seed, train_limit=30, validation_limit=7)
        train, held = ({one.context for one in split.questions} for split in (task.train, task.validation))
        assert not train & held
        assert (len(task.train.questions), len(task.validation.questions)) == (30, 7)
    assert task.data_summary["train"] == {
        "examples": 30, "of": 60, "windows": len(task.train), "sha256": sha256(roots.data[0] / "train-v2.0.json"),
    }  # fmt: skip
    assert task.data_summary["test"]["examples"] == 18


def oracle(task: Any, examples: Any, *, null: dict[int, float] | None = None) -> torch.Tensor:
    """What a model that knows the answers would say; `null` sets a question's lead of no answer over the answer."""
    batch = examples.batch(torch.arange(len(examples)))
    logits = [torch.zeros(batch["input_ids"].shape) for _ in range(2)]
    for window, (start, end, none) in enumerate(examples.positions_n3.tolist()):
        lead = (null or {}).get(int(examples.question_n[window]))
        for scores, position in zip(logits, (start, end), strict=True):
            scores[window, position] += 4.0
            if lead is not None:
                scores[window, none] = scores[window].max() + lead
    return task.answers({"start_logits": logits[0], "end_logits": logits[1]}, batch)


def test_who_knows_the_answers_is_right(roots: Roots) -> None:
    task = load(roots)
    for split in (task.validation, task.test):
        scores = task.measure(oracle(task, split), split)
        names = ("exact", "f1", "HasAns_exact", "HasAns_f1", "NoAns_exact", "NoAns_f1")
        assert {name: scores[name] for name in names} == dict.fromkeys(names, 1.0)


def test_the_threshold_of_the_test_split_is_chosen_on_validation(roots: Roots) -> None:
    task = load(roots)
    first = len(task.validation.questions)
    shy = {number: 3.0 for number, one in enumerate(task.test.questions) if number >= first and one.answers}
    answers = oracle(task, task.test, null=shy)
    scores = task.measure(answers, task.test)
    terms = task.terms(answers, task.test)
    assert terms.tolist() == [float(not one.answers) for one in task.test.questions[first:]]
    assert float(terms.mean()) == pytest.approx(scores["f1"])
    assert scores["HasAns_f1"] == 0, "a threshold chosen on test would have answered them"
    also = {number: 3.0 for number, one in enumerate(task.test.questions) if one.answers}
    scores = task.measure(oracle(task, task.test, null=also), task.test)
    assert scores["HasAns_f1"] == 1.0
    assert scores["null_threshold"] == pytest.approx(6.0)


def test_the_best_span_is_the_best_of_all_valid_ones() -> None:
    generator = torch.Generator().manual_seed(3)
    start_bt, end_bt = torch.randn((2, 5, 50), generator=generator)
    context_bt = torch.zeros((5, 50), dtype=torch.bool)
    for row in range(4):
        context_bt[row, 3 * row + 1 : 45] = True
    score_b, first_b, last_b = best_span(start_bt, end_bt, context_bt)
    for row in range(4):
        spans = {
            (first, last): float(start_bt[row, first] + end_bt[row, last])
            for first in range(3 * row + 1, 45)
            for last in range(first, min(45, first + ANSWER_TOKENS))
        }
        best = max(spans, key=lambda span: spans[span])
        assert (int(first_b[row]), int(last_b[row])) == best
        assert float(score_b[row]) == pytest.approx(spans[best])
    assert score_b[4] == -torch.inf


def test_padding_changes_no_loss(roots: Roots) -> None:
    task = load(roots)
    windows = task.test
    short = int(windows.evaluation_order()[0])
    long = int(windows.evaluation_order()[-1])
    generator = torch.Generator().manual_seed(0)
    alone, both = windows.batch(torch.tensor([short])), windows.batch(torch.tensor([short, long]))
    assert alone["input_ids"].shape[1] < both["input_ids"].shape[1]
    logits = torch.randn((2, 1, 70), generator=generator)

    def outputs_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        width = batch["input_ids"].shape[1]
        return {"start_logits": logits[0, :, :width], "end_logits": logits[1, :, :width]}

    padded = {name: rows[:1] for name, rows in both.items()}
    assert task.loss(outputs_of(alone), alone) == pytest.approx(float(task.loss(outputs_of(padded), padded)))


def test_long_questions_are_cut_and_windows_without_room_refused(roots: Roots) -> None:
    rows = squad_rows(10, 1)
    rows[0]["question"] = "what " * 50 + "?"
    write_lines(roots.data[0] / "long.jsonl", rows)
    task = load(roots, train="long.jsonl", validation="dev-v2.0.json")
    for window in range(len(task.train)):
        question = task.train.batch(torch.tensor([window]))["token_type_ids"][0].eq(0).sum()
        assert int(question) <= 24 // 3 + 2
    with pytest.raises(DataRefused, match=r"target.data: a window of max_length 24 has room for 13 tokens .*stride 20"):
        load(roots, stride=20)


GOOD = squad_rows(3, 1)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"answers": None}, "question 8: answers are not"),
        ({"answers": {"text": ["red"], "answer_start": []}}, "question 8: answers are not"),
        ({"answers": {"text": ["red"], "answer_start": [0]}}, "the text at character 0 is not the answer 'red'"),
        ({"answers": {"text": [3], "answer_start": [0]}}, "question 8: answers are not"),
        ({"question": " "}, "question 8 has question ' '"),
        ({"context": None}, "question 8 has context None"),
    ],
)
def test_faults_name_their_question(change: dict[str, Any], sentence: str, roots: Roots) -> None:
    rows = [*GOOD[:8], GOOD[8] | change]
    if change.get("answers", 0) is None:
        rows[8]["answers"] = {"text": None, "answer_start": None}
    (roots.data[0] / "bad.json").write_text(json.dumps(rows))
    if isinstance(change.get("answers"), dict) and change["answers"]["text"] == [3]:
        bad = {"context": "red", "qas": [{"question": "q", "answers": [{"text": 3, "answer_start": 0}]}]}
        (roots.data[0] / "bad.json").write_text(json.dumps({"data": [{"paragraphs": [bad]}]}))
        sentence = sentence.replace("8", "0")
    with pytest.raises(DataRefused) as refused:
        load(roots, train="bad.json")
    assert refused.value.message.startswith("target.data.train: ")
    assert sentence in refused.value.message


def test_other_json_is_refused(roots: Roots) -> None:
    (roots.data[0] / "other.json").write_text(json.dumps({"data": [{"paragraphs": [{"text": "x"}]}]}))
    with pytest.raises(DataRefused, match=r"not in SQuAD's form, data → paragraphs → context and qas"):
        load(roots, train="other.json")
    (roots.data[0] / "none.json").write_text(json.dumps({"version": "v2.0", "data": []}))
    with pytest.raises(DataRefused, match=r"target.data.test: none.json has no questions"):
        load(roots, test="none.json")
    write_lines(roots.data[0] / "rows.jsonl", [{"question": "q", "context": "c"}])
    with pytest.raises(DataRefused, match=r"has no column 'answers'; its columns are question, context"):
        load(roots, train="rows.jsonl")


def test_a_tokenizer_without_offsets_is_refused(roots: Roots) -> None:
    slow = SimpleNamespace(is_fast=False)
    with pytest.raises(DataRefused, match=r"does not give the position of a token .* tokenizer.json"):
        read_examples("question-answering", DataSpec(train="x", test="y"), roots, tokenizer=slow)
