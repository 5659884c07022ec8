"""The table of tasks: what each row promises is there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import transformers

from mergenet_core.architectures.check_config import check_config, model_types
from mergenet_core.architectures.shapes import shapes_from_config
from mergenet_core.spec.data import DataSpec
from mergenet_core.spec.json_values import JsonObject
from mergenet_core.spec.parse import json_schema
from mergenet_core.spec.task_info import TASKS
from mergenet_core.tasks.loading import task_loader


def test_every_row_has_a_loader_an_auto_class_and_model_types() -> None:
    for name, info in TASKS.items():
        assert callable(task_loader(name))
        assert hasattr(transformers, info.auto_class)
        assert model_types()[name]
    assert model_types().keys() == TASKS.keys()


def test_a_row_may_use_the_heads_of_another_task(monkeypatch: pytest.MonkeyPatch) -> None:
    row = replace(TASKS["text-classification"], name="sentiment", head="text-classification")
    monkeypatch.setitem(TASKS, "sentiment", row)  # type: ignore[arg-type]
    config: JsonObject = {"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
    assert shapes_from_config(config, "sentiment") == shapes_from_config(config, "text-classification")
    model_types.cache_clear()
    try:
        check_config(config, "sentiment", where="target.model.config")
    finally:
        model_types.cache_clear()


def test_the_schema_allows_the_tasks_of_the_table() -> None:
    defined = json_schema()["$defs"]
    assert defined["TargetSpec"]["properties"]["task"]["enum"] == list(TASKS)
    assert defined["SourceSpec"]["properties"]["task"]["anyOf"][0]["enum"] == list(TASKS)


def test_columns_are_those_that_the_document_names() -> None:
    data = DataSpec(train="a", test="b", text="body", label="topic", image="img", answers="said")
    assert {name: info.columns(data) for name, info in TASKS.items()} == {
        "text-classification": ("body", "topic"),
        "image-classification": ("img", "topic"),
        "question-answering": ("question", "context", "said"),
        "causal-language-modelling": ("body",),
        "masked-language-modelling": ("body",),
        "visual-question-answering": ("img", "question", "said"),
        "image-text-retrieval": ("img", "caption"),
    }


def test_the_first_characters_of_a_json_file_tell_a_data_set_from_a_table() -> None:
    squad = TASKS["question-answering"]
    assert squad.is_dataset_json('{"data": [{"paragraphs": [')
    assert squad.columns_in_json('{"data": [{"paragraphs": [', ("question", "context")) == ["question", "context"]
    assert not squad.is_dataset_json('[{"question": ')
    assert squad.columns_in_json('[{"question": "", "größe": 1}', ("question", "context", "größe")) == [
        "question", "größe",
    ]  # fmt: skip
    assert not TASKS["text-classification"].is_dataset_json('{"data": [{"paragraphs": [')
