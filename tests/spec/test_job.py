"""The job document: what is read, and the sentence that each fault is answered with."""

from __future__ import annotations

import copy
import json
import time
from typing import Any

import jsonschema
import pytest
import yaml

from mergenet_core.errors import SpecInvalid
from mergenet_core.spec.data import HeldOut
from mergenet_core.spec.job import JobSpec
from mergenet_core.spec.parse import json_schema, parse
from mergenet_core.spec.yaml_text import read_yaml

DOCUMENT: dict[str, Any] = {
    "name": "a job",
    "source": {"model": {"path": "big"}},
    "target": {
        "model": {"config": {"model_type": "bert", "hidden_size": 32}},
        "task": "text-classification",
        "data": {"train": "train.jsonl", "test": "test.jsonl"},
    },
    "train": {"steps": 10},
}


def changed(pointer: str, value: object) -> dict[str, Any]:
    """The document with one value set, or taken out when it is None."""
    document = copy.deepcopy(DOCUMENT)
    *parents, last = pointer.strip("/").split("/")
    node = document
    for part in parents:
        node = node.setdefault(part, {})
    if value is None:
        del node[last]
    else:
        node[last] = value
    return document


@pytest.mark.parametrize(
    ("pointer", "value", "sentence"),
    [
        ("/sorce", {}, "sorce is not a known key; did you mean source?"),
        ("/train/stps", 3, "train.stps is not a known key; did you mean steps?"),
        ("/zzz", 3, "known keys here: arms,"),
        ("/train/steps", 0, "greater than or equal to 1 (given: 0)"),
        ("/train/steps", "ten", 'must be a whole number (given: "ten")'),
        ("/train/learning_rate", float("nan"), "finite"),
        ("/train/warmup_steps", 10, "warmup_steps 10 must be smaller than steps 10"),
        ("/train/milestones", [0.6, 0.3], "milestones must be ascending, and none may repeat: [0.6, 0.3]"),
        ("/train/milestones", [0.3, 1.0], "less than 1"),
        ("/train/optimizer", "adam", "'adamw' or 'sgd'"),
        ("/source/model/path", None, "exactly one of path, hub, config and, for a source, pack, not none of them"),
        ("/source/model/hub", "org/name", "exactly one of path, hub, config and, for a source, pack, not path and hub"),
        ("/target/model", {"hub": "org/name"}, "pin the hub id to a 40-digit commit"),
        ("/target/model", {"hub": "org/name", "revision": "main"}, "should match pattern"),
        ("/target/model/config", {"hidden_size": 3}, "config needs model_type"),
        ("/source/model", {"config": {"model_type": "bert"}}, "from a config is untrained"),
        ("/source/train", {"steps": 3}, "source.data and source.train go together"),
        ("/target/task", "poetry", "'text-classification', 'image-classification'"),
        ("/target/data/train", None, "target.data.train is missing"),
        ("/target/data/train_fraction", 0, "greater than 0"),
        ("/target/data/unlabelled", "test.jsonl", "unlabelled must not be the test split: test.jsonl"),
        ("/target/data/unlabelled_limit", 5, "unlabelled_limit limits nothing"),
        ("/transfer/distill", {"pool_batch_size": 4}, "transfer.distill.pool_batch_size counts unlabelled inputs"),
        ("/arms", ["transfer"], "arms needs control"),
        ("/arms", ["control"], "arms needs transfer"),
        ("/arms", ["transfer", "control", "control"], "must not repeat"),
        ("/seeds", [], "at least 1 item"),
        ("/seeds", [-1], "greater than or equal to 0"),
        ("/transfer/rank", 0, "greater than or equal to 1"),
        ("/transfer/method", "magic", "'auto', 'project', 'anchored', 'lpka', 'lpka-raw' or 'fit'"),
        ("/transfer", {"method": "project", "fit": {"inputs": 64}}, "fit has settings of method fit, not of project"),
        ("/transfer", {"method": "fit", "include": "embeddings"}, "include is all or no-head, not embeddings"),
        ("/transfer/width", 30, "width 30 must be a multiple of heads 4"),
        ("/transfer/pairs", [{"source": "a", "target": "b"}], "methods lpka and lpka-raw"),
        ("/version", 2, "1"),
        ("/name", "a\nb", "name: must be one line of visible text"),
        ("/name", "gnp.exe\u202egpj", "without control characters or marks that change its direction"),
        ("/name", "a\x9bb", "must be one line of visible text"),
        ("/labels", {"a\u200b": "x"}, "must be one line of visible text"),
        ("/labels", {"a": 3}, "labels.a: must be text; put it in quotes (given: 3)"),
        ("/train", [1], "train: must be a mapping of keys and values (given: [1])"),
        ("/source/model/path", 3, "source.model.path: must be text"),
    ],
)
def test_a_fault_has_its_pointer_and_remedy(pointer: str, value: object, sentence: str) -> None:
    with pytest.raises(SpecInvalid) as caught:
        parse(changed(pointer, value))
    assert any(sentence in fault.message for fault in caught.value.errors), caught.value.errors
    assert all(fault.pointer.startswith("/") for fault in caught.value.errors if fault.pointer)


def test_unlabelled_inputs_are_the_target_s_and_their_batch_divides() -> None:
    job = changed("/target/data/unlabelled", "pool.jsonl") | {"arms": ["transfer", "control", "distill"]}
    assert parse(job).pool_batch_size == 32
    assert parse(job | {"transfer": {"distill": {"pool_batch_size": 6}}}).pool_batch_size == 6
    for changes, sentence in (
        (
            {"transfer": {"distill": {"pool_batch_size": 6}}, "resources": {"devices": 4}},
            "6 must be a multiple of devices",
        ),
        ({"source": job["source"] | {"data": job["target"]["data"], "train": {"steps": 3}}}, "source.data.unlabelled"),
    ):
        with pytest.raises(SpecInvalid, match=sentence):
            parse(job | changes)


def test_a_fit_needs_a_source_that_runs_as_it_is() -> None:
    fit = changed("/transfer", {"method": "fit"})
    assert parse(fit).may_fit
    pack = {"model": {"pack": "source.pack"}}
    for source, arms, sentence in (
        (fit["source"] | {"rank": 4}, ["transfer", "control"], "give the source itself, and leave source.rank out"),
        (pack, ["transfer", "control"], "which a pack or a rank of its weights does not allow"),
        (pack | {"mode": "trajectory"}, ["transfer", "control"], "needs a frozen source, not mode trajectory"),
        (fit["source"], ["transfer", "control", "copy"], "method fit pairs none; leave copy out"),
    ):
        with pytest.raises(SpecInvalid) as caught:
            parse(fit | {"source": source, "arms": arms})
        assert any(sentence in fault.message for fault in caught.value.errors), caught.value.errors


def test_unlabelled_inputs_that_nothing_uses_are_refused() -> None:
    document = changed("/transfer", {"method": "project"})
    document["target"]["data"]["unlabelled"] = "pool.jsonl"
    with pytest.raises(SpecInvalid, match="used by method fit and by the arms distill"):
        parse(document)


def test_auto_may_fit_where_there_are_unlabelled_inputs() -> None:
    auto = changed("/transfer", {"method": "auto"})
    assert not parse(auto).may_fit
    auto["target"]["data"]["unlabelled_from_train"] = True
    assert parse(auto).may_fit
    assert not parse(auto | {"source": auto["source"] | {"rank": 4}}).may_fit


def test_always_delivering_the_transfer_needs_a_method_by_name() -> None:
    with pytest.raises(SpecInvalid, match="deliver transfer needs a method by name"):
        parse(changed("/transfer", {"method": "auto", "deliver": "transfer"}))
    assert parse(changed("/transfer", {"method": "project", "deliver": "transfer"})).transfer.deliver == "transfer"


def test_a_source_does_not_learn_what_validates_or_tests_the_target() -> None:
    target = {"train": "own.jsonl", "test": "test.jsonl"}
    for data, own, sentence in (
        (
            {"train": "test.jsonl", "test": "x"},
            target,
            "target.data.test is test.jsonl, which the source is trained on",
        ),
        ({"train": "v.jsonl", "test": "x"}, target | {"validation": "v.jsonl"}, "target.data.validation is v.jsonl"),
        ({"train": "own.jsonl", "test": "x", "validation": "v"}, target, "give target.data.validation too"),
    ):
        document = changed("/transfer", {"method": "project"})
        document["source"] |= {"data": data, "train": {"steps": 3}}
        document["target"]["data"] = own
        with pytest.raises(SpecInvalid) as caught:
            parse(document)
        assert any(sentence in fault.message for fault in caught.value.errors), caught.value.errors
    document["source"]["data"] = {"train": "own.jsonl", "test": "x", "validation_limit": 50}
    assert parse(document).held_out == HeldOut(0, 50)
    document["source"]["data"]["train"] = "other.jsonl"
    assert parse(document).held_out is None


def test_copies_are_for_images_without_unlabelled_ones() -> None:
    distill = {"arms": ["transfer", "control", "distill"], "transfer": {"distill": {"copies": True}}}
    with pytest.raises(SpecInvalid, match=r"distill\.copies is for image-classification, not for text"):
        parse(changed("/target/task", "text-classification") | distill)
    images = changed("/target/task", "image-classification") | distill
    assert parse(images).transfer.distill is not None
    images["target"]["data"]["unlabelled"] = "pool.parquet"
    with pytest.raises(SpecInvalid, match=r"copies takes the place of unlabelled images"):
        parse(images)


@pytest.mark.parametrize(
    ("pointer", "value", "field"),
    [
        ("/seeds", [1, 1], "/seeds"),
        ("/arms", ["transfer"], "/arms"),
        ("/target/data/unlabelled_limit", 5, "/target/data/unlabelled_limit"),
        ("/train/warmup_steps", 10, "/train/warmup_steps"),
        ("/resources", {"strategy": "single", "devices": 2}, "/resources/strategy"),
    ],
)
def test_a_fault_between_fields_points_to_the_one_that_it_names(pointer: str, value: object, field: str) -> None:
    with pytest.raises(SpecInvalid) as caught:
        parse(changed(pointer, value))
    assert [fault.pointer for fault in caught.value.errors] == [field]


def test_a_number_too_long_to_print_is_refused_with_a_sentence() -> None:
    with pytest.raises(SpecInvalid, match="name: must be text"):
        parse(yaml.safe_dump(DOCUMENT).replace("name: a job", "name: 0x" + "f" * 5000))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0017", 17),
        ("1e1", 10.0),
        ("0x11", 17),
        ("0o21", 17),
        ("-3", -3),
        (".5", 0.5),
        ("1:30", "1:30"),
        ("1_0", "1_0"),
    ],
)
def test_numbers_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = read_yaml(f"a: {text}")
    assert found == {"a": value}
    assert type(found["a"]) is type(value)  # type: ignore[index]


@pytest.mark.parametrize("text", ["train: 1\ntrain: 2", '{"train": 1, "train": 2}', "a:\n  train: 1\n  train: 2"])
def test_a_repeated_key_is_refused(text: str) -> None:
    with pytest.raises(SpecInvalid, match=r"repeats a key: train is given twice, again in line \d; keep one of them"):
        parse(text)


def test_yaml_that_would_take_long_is_refused_early() -> None:
    begun = time.process_time()
    read_yaml("name: [" + "1," * 9_000 + "]")
    for hostile in ("[" * 60_000, "{a: " * 30_000, "name: [" + "[],0," * 60_000 + "]"):
        with pytest.raises(SpecInvalid, match="32 levels and 10000 values and keys at most"):
            parse(hostile)
    assert time.process_time() - begun < 0.7, "the parser in Python takes that for the first alone"


def test_a_mapping_with_thousands_of_unknown_keys_is_refused_before_each_is_looked_at() -> None:
    many = {f"key{number}": 1 for number in range(100_000)}
    begun = time.process_time()
    for document in (many, DOCUMENT | {"train": many}):
        with pytest.raises(SpecInvalid, match="has 100000 keys; 1000 is the most"):
            parse(document)
    assert time.process_time() - begun < 0.1
    parse(changed("/target/model/config", {"model_type": "bert"} | dict.fromkeys(list(many)[:2000], 1)))


def test_all_faults_are_reported_at_once() -> None:
    document = changed("/train/steps", 0) | {"sorce": 1}
    with pytest.raises(SpecInvalid, match="2 faults") as caught:
        parse(document)
    assert {fault.pointer for fault in caught.value.errors} == {"/train/steps", "/sorce"}


@pytest.mark.parametrize("text", ["a: [", "\x00", "- 1\n- 2", "just words", "", b"\xff\xfe\x00"])
def test_what_is_no_document_is_refused(text: str | bytes) -> None:
    with pytest.raises(SpecInvalid):
        parse(text)


def test_aliases_are_not_expanded() -> None:
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\nname: *b\n"
    with pytest.raises(SpecInvalid, match="aliases"):
        parse(bomb)


def test_yaml_json_and_data_read_the_same() -> None:
    assert parse(yaml.safe_dump(DOCUMENT)) == parse(json.dumps(DOCUMENT)) == parse(DOCUMENT)


def test_a_number_with_an_exponent_needs_no_dot() -> None:
    text = yaml.safe_dump(DOCUMENT).replace("steps: 10", "steps: 10\n  learning_rate: 5e-4")
    assert parse(text).train.learning_rate == 5e-4


def test_what_is_written_out_reads_back() -> None:
    spec = parse(DOCUMENT)
    assert JobSpec.model_validate_json(spec.model_dump_json(exclude_defaults=True)) == spec


def test_the_schema_accepts_what_is_accepted_and_refuses_what_is_refused() -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    assert not list(validator.iter_errors(DOCUMENT))
    assert list(validator.iter_errors(changed("/train/stps", 3)))
    assert list(validator.iter_errors(changed("/train/steps", 0)))


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (float("nan"), "config.x is nan; write a finite number"),
        ("\ud800", "config.x holds half of a character"),
        ({"\ud800": 1}, "config.x holds half of a character"),
        (b"\x80", "config.x is of type bytes"),
        ({1: "a"}, "config.x: the key 1 is not text; put it in quotes"),
        (10**400, "config.x is a number of 1329 bits; write a smaller one"),
        (json.loads("[" * 400 + "]" * 400), "is nested deeper than 16 levels; make it flatter"),
    ],
)
def test_a_config_holds_what_json_can(value: object, sentence: str) -> None:
    document = changed("/target/model/config/x", value)
    with pytest.raises(SpecInvalid) as caught:
        parse(document)
    assert sentence in caught.value.errors[0].message
    assert caught.value.errors[0].pointer == "/target/model/config"


def test_many_faults_are_counted_and_a_few_described() -> None:
    began = time.perf_counter()
    with pytest.raises(SpecInvalid, match="980 faults") as caught:
        parse(DOCUMENT | {f"key-{number}": 1 for number in range(980)})
    assert len(caught.value.errors) == 20
    assert time.perf_counter() - began < 1  # three, were each to be looked up


@pytest.mark.parametrize("value", ["{2020-01-01: 1}", "[" * 30 + "]" * 30])
def test_a_value_that_cannot_be_quoted_is_still_refused_with_its_pointer(value: str) -> None:
    with pytest.raises(SpecInvalid) as caught:
        parse(f"name: {value}")
    assert caught.value.errors[0].pointer == "/name"
