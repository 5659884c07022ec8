"""Texts become the tokens of their own rows, and every fault of the data is reported with its row and remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from mergenet_core.errors import DataRefused, PathRefused
from mergenet_core.models.processors import load_tokenizer
from mergenet_core.spec.job import DataSpec
from mergenet_core.storage.paths import Roots
from mergenet_core.storage.published_folder import sha256
from tests.tasks.examples import read_examples
from tests.tasks.words import write_reviews
from tests.training.tiny import text_rows, write_lines, write_tokenizer


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    write_tokenizer(tmp_path / "tokenizer")
    write_lines(tmp_path / "train.jsonl", text_rows(50, 1))
    write_lines(tmp_path / "test.jsonl", text_rows(20, 2))
    return Roots((tmp_path,), (tmp_path,))


def load(roots: Roots, seed: int = 0, **data: Any) -> Any:
    spec = DataSpec(**({"train": "train.jsonl", "test": "test.jsonl"} | data))
    return read_examples(
        "text-classification", spec, roots, seed=seed, tokenizer=load_tokenizer(roots.models[0] / "tokenizer")
    )


def texts(task: Any, split: str) -> list[str]:
    batch = getattr(task, split).batch(torch.arange(len(getattr(task, split))))
    return [task.processor.decode(ids, skip_special_tokens=True) for ids in batch["input_ids"]]


def test_the_batch_is_what_the_tokenizer_makes_of_the_rows(roots: Roots) -> None:
    task = load(roots)
    rows = [json.loads(line) for line in (roots.data[0] / "test.jsonl").read_text().splitlines()]
    batch = task.test.batch(torch.tensor([3, 0]))
    expected = task.processor([rows[3]["text"], rows[0]["text"]], return_tensors="pt", padding=True)
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    assert [task.labels[row] for row in batch["labels"]] == [rows[3]["label"], rows[0]["label"]]
    assert task.labels == ("fruit", "music", "tools")
    assert task.data_summary["test"] == {"examples": 20, "sha256": sha256(roots.data[0] / "test.jsonl")}


def test_training_and_validation_are_disjoint_and_drawn_by_the_seed(roots: Roots) -> None:
    write_lines(roots.data[0] / "train.jsonl", [{"text": "a " * row, "label": "xy"[row % 2]} for row in range(50)])
    write_lines(roots.data[0] / "test.jsonl", [{"text": "a", "label": "x"}])

    def drawn(seed: int, **data: Any) -> tuple[list[int], list[int]]:
        task = load(roots, seed, **data)
        return [int(n) for n in task.train.lengths_n], [int(n) for n in task.validation.lengths_n]

    train, validation = drawn(0, train_limit=20)
    assert (len(train), len(validation)) == (20, 10)
    assert not set(train) & set(validation)
    assert drawn(0, train_limit=20) == (train, validation)
    assert drawn(1, train_limit=20) != (train, validation)
    assert drawn(0, train_limit=30)[0][:20] == train, "more examples keep the first ones"
    assert drawn(0, train_limit=30)[1] == validation
    assert [len(part) for part in drawn(0)] == [40, 10]
    assert [len(part) for part in drawn(0, train_fraction=0.1, validation_limit=4)] == [5, 4]
    assert [len(part) for part in drawn(0, validation="test.jsonl")] == [50, 1]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
def test_every_format_gives_the_same_examples(suffix: str, roots: Roots) -> None:
    expected = texts(load(roots), "train")
    table = datasets.Dataset.from_list(text_rows(50, 1))
    path = str(roots.data[0] / f"other.{suffix}")
    {"jsonl": table.to_json, "parquet": table.to_parquet, "csv": table.to_csv}[suffix](path)
    assert texts(load(roots, train=f"other.{suffix}"), "train") == expected


def test_a_folder_of_shards_and_class_labels_and_whole_numbers_are_read(roots: Roots) -> None:
    folder = roots.data[0] / "shards"
    folder.mkdir()
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    for shard in range(2):
        rows = [{"text": "apple", "label": row % 2} for row in range(5)]
        datasets.Dataset.from_list(rows, features=features).to_parquet(folder / f"part-{shard}.parquet")
    task = load(roots, train="shards", test="shards")
    assert task.labels == ("no", "yes")
    assert len(task.test) == 10
    write_lines(roots.data[0] / "numbers.jsonl", [{"text": "a", "label": row % 11} for row in range(22)])
    assert load(roots, train="numbers.jsonl", test="numbers.jsonl").labels == tuple(str(row) for row in range(11))


GOOD = [{"text": "apple", "label": "x"}, {"text": "saw", "label": "y"}] * 4


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"body": "a", "label": "x"}], "has no column 'text'; its columns are body, label"),
        ([{"text": "a", "topic": "x"}], "has no column 'label'; its columns are text, topic"),
        ([*GOOD, {"text": None, "label": "x"}], "row 8 has None in column 'text'"),
        ([*GOOD, {"text": "a", "label": None}], "row 8 has no label"),
        ([{"text": 3, "label": "x"}, {"text": 4, "label": "y"}] * 4, "row 0 has 3 in column 'text'"),
        ([{"text": "a", "label": 0.5}, {"text": "a", "label": 1.5}] * 4, "row 0 has label 0.5"),
        ([{"text": "a", "label": "x"}] * 8, "every example is labelled 'x'; at least two labels"),
        (GOOD[:3], "has 3 examples; at least 5 are needed"),
    ],
)
def test_faults_in_the_training_file(rows: list[dict[str, Any]], sentence: str, roots: Roots) -> None:
    write_lines(roots.data[0] / "bad.jsonl", rows)
    write_lines(roots.data[0] / "good.jsonl", GOOD)
    with pytest.raises(DataRefused) as refused:
        load(roots, train="bad.jsonl", test="good.jsonl")
    assert refused.value.message.startswith("target.data.train: ")
    assert sentence in refused.value.message


def test_faults_in_the_test_file(roots: Roots) -> None:
    write_lines(roots.data[0] / "bad.jsonl", [{"text": "a", "label": "weather"}])
    with pytest.raises(DataRefused, match=r"target.data.test: label 'weather' does not occur in the training split"):
        load(roots, test="bad.jsonl")
    (roots.data[0] / "empty.jsonl").touch()
    with pytest.raises(DataRefused, match=r"target.data.test: empty.jsonl is empty"):
        load(roots, test="empty.jsonl")
    datasets.Dataset.from_dict({"text": [], "label": []}).to_parquet(roots.data[0] / "none.parquet")
    with pytest.raises(DataRefused, match=r"target.data.test: none.parquet has no examples"):
        load(roots, test="none.parquet")
    (roots.data[0] / "torn.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataRefused, match=r"torn.parquet cannot be read as parquet"):
        load(roots, test="torn.parquet")
    (roots.data[0] / "rows.xlsx").write_bytes(b"x")
    with pytest.raises(DataRefused, match=r"rows.xlsx is not a format that is read"):
        load(roots, test="rows.xlsx")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["fruit", "b"])})
    datasets.Dataset.from_list([{"text": "a", "label": -1}], features=features).to_parquet(roots.data[0] / "un.parquet")
    with pytest.raises(DataRefused, match=r"row 0 is unlabelled \(-1\)"):
        load(roots, test="un.parquet")


def test_csv_with_gaps_is_refused(roots: Roots) -> None:
    (roots.data[0] / "gaps.csv").write_text("text,label\napple,1\n,2\nsaw,\npear,2\n" + "fig,1\n" * 4)
    with pytest.raises(DataRefused, match=r"target.data.train: row 2 has no label"):
        load(roots, train="gaps.csv")


def test_the_hub_is_closed(roots: Roots) -> None:
    with pytest.raises(PathRefused, match=r"target.data.train: the hub is closed here"):
        load(roots, hub="org/data", revision="0" * 40)


def test_the_folders_of_imdbs_archive_are_read(roots: Roots) -> None:
    for split in ("train", "test"):
        write_reviews(roots.data[0] / "aclImdb" / split, 10)
    task = load(roots, train="aclImdb/train", test="aclImdb/test")
    assert task.labels == ("neg", "pos")
    assert len(task.test) == 20
    assert sorted(texts(task, "test"))[-1] == "[UNK] apple the the the the the the the the the".replace("[UNK] ", "")
    batch = task.test.batch(torch.arange(20))
    assert batch["labels"].tolist() == [0] * 10 + [1] * 10
    assert batch["attention_mask"].sum(dim=1).max() == 13
    (roots.data[0] / "aclImdb" / "test" / "pos" / "0_7.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataRefused, match=r"target.data.test: pos/0_7.txt is not UTF-8"):
        load(roots, train="aclImdb/train", test="aclImdb/test")


def test_imdbs_tables_with_whole_numbers_are_read(roots: Roots) -> None:
    for split in ("train", "test"):
        rows = [{"text": "apple", "label": row % 2} for row in range(10)]
        datasets.Dataset.from_list(rows).to_parquet(roots.data[0] / f"{split}-00000-of-00001.parquet")
    task = load(roots, train="train-00000-of-00001.parquet", test="test-00000-of-00001.parquet")
    assert task.labels == ("0", "1")
    assert task.test.batch(torch.arange(4))["labels"].tolist() == [0, 1, 0, 1]
