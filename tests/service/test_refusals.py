"""Bad input gets a 4xx and a sentence that says what to change; nothing is queued and nothing remains."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from mergenet_core.records.record import now
from mergenet_core.records.workers import Device, WorkerInfo
from mergenet_core.spec.parse import parse
from mergenet_core.store.jobs import Store
from mergenet_core.store.worker_registry import report_alive
from service.server import submission
from service.server.settings import ServiceSettings

BERT = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A function that sets an entry of a document by its dotted path; `None` removes the entry."""
    *parents, last = path.split(".")

    def change(document: dict[str, Any]) -> None:
        for parent in parents:
            document = document.setdefault(parent, {})
        if value is None:
            del document[last]
        else:
            document[last] = value

    return change


def config(**settings: Any) -> Callable[[dict[str, Any]], None]:
    """A function that adds settings to the target's config."""
    return lambda document: document["target"]["model"]["config"].update(settings)


REFUSED: list[tuple[str, Callable[[dict[str, Any]], None], str, str]] = [
    ("unknown key", put("trian", {}), "spec-invalid", "trian is not a known key; did you mean train?"),
    (
        "wrong type",
        put("train.steps", "100"),
        "spec-invalid",
        'train.steps: must be a whole number (given: "100")',
    ),
    (
        "one device for several",
        put("resources", {"strategy": "single", "devices": 2}),
        "spec-invalid",
        "strategy single is one device",
    ),
    (
        "offload without ZeRO",
        put("resources", {"strategy": "ddp", "offload": "optimizer"}),
        "spec-invalid",
        "not to ddp",
    ),
    (
        "a batch that does not divide",
        put("resources", {"devices": 7}),
        "spec-invalid",
        "must be a multiple of devices × nodes × micro_batches, 7 × 1 × 1",
    ),
    (
        "DeepSpeed settings that the service owns",
        put("resources", {"strategy": "zero2", "deepspeed": {"zero_optimization": {"stage": 3}}}),
        "spec-invalid",
        "resources.deepspeed.zero_optimization.stage is set by resources.strategy",
    ),
    ("zero steps", put("train.steps", 0), "spec-invalid", "greater than or equal to 1 (given: 0)"),
    ("missing part", put("source", None), "spec-invalid", "source is missing; it is required"),
    ("wrong version", put("version", 2), "spec-invalid", "version: input should be 1 (given: 2)"),
    ("no origin", put("source.model", {}), "spec-invalid", "exactly one of path, hub, config and, for a source, pack"),
    ("two origins", put("source.model.config", {"model_type": "bert"}), "spec-invalid", "not path and config"),
    ("unpinned hub", put("source.model", {"hub": "a/b"}), "spec-invalid", "pin the hub id to a 40-digit commit"),
    ("no control", put("arms", ["transfer"]), "spec-invalid", "arms needs control"),
    ("arm twice", put("arms", ["transfer", "control", "control"]), "spec-invalid", "arms must not repeat"),
    ("unknown arm", put("arms", ["transfer", "control", "magic"]), "spec-invalid", "arms.2"),
    ("seed twice", put("seeds", [1, 1]), "spec-invalid", "seeds must not repeat"),
    ("long warm-up", put("train.warmup_steps", 9), "spec-invalid", "warmup_steps 9 must be smaller than steps 4"),
    ("infinite rate", put("train.learning_rate", 1e999), "spec-invalid", "train.learning_rate"),
    ("unknown task", put("target.task", "poetry"), "spec-invalid", "target.task"),
    (
        "hub is closed",
        put("source.model", {"hub": "a/b", "revision": "0" * 40}),
        "path-refused",
        "does not open the hub",
    ),
    (
        "no such model",
        put("source.model.path", "nothing"),
        "path-refused",
        "'nothing' does not exist below the model roots",
    ),
    ("out by ..", put("source.model.path", "../data"), "path-refused", "'../data' lies outside the model roots"),
    ("out by root", put("target.data.train", "/etc/passwd"), "path-refused", "lies outside the data roots"),
    ("out by link", put("target.data.train", "link"), "path-refused", "lies outside the data roots"),
    ("no such data", put("target.data.test", "digits/nothing"), "path-refused", "does not exist below the data roots"),
    ("empty folder", put("target.data.train", "empty"), "data-refused", "the folder empty is empty"),
    ("empty file", put("target.data.train", "empty.csv"), "data-refused", "empty.csv is empty"),
    ("unread format", put("target.data.train", "rows.xlsx"), "data-refused", "rows.xlsx is not read; give .parquet"),
    (
        "no such column",
        put("target.data.train", "rows.csv"),
        "data-refused",
        "has no column 'image'; it has picture, label",
    ),
    (
        "pickled weights",
        put("source.model.path", "pickled"),
        "model-refused",
        "pickled weights only (pytorch_mod",
    ),
    (
        "a pipe for a config",
        put("source.model.path", "pipe"),
        "model-refused",
        "config.json is not a regular file",
    ),
    (
        "pipes for weights",
        put("source.model.path", "pipes"),
        "model-refused",
        "tensors is not a regular file",
    ),
    (
        "linked weights",
        put("source.model.path", "linked"),
        "path-refused",
        "a link to a file outside the model roots",
    ),
    ("torn weights", put("source.model.path", "torn"), "model-refused", "not a whole safetensors file"),
    ("giant header", put("source.model.path", "giant"), "model-refused", "not a whole safetensors file"),
    ("code in config", put("source.model.path", "coded"), "model-refused", "brings code of its own (auto_map)"),
    ("unknown model", put("target.model.config", {"model_type": "skynet"}), "model-refused", "skynet"),
    (
        "a misspelt setting",
        config(hidden_sixe=3),
        "model-refused",
        "did you mean hidden_sizes?",
    ),
    ("wrong task", put("target.model.config", BERT), "model-refused", "bert"),
]


@pytest.fixture
def bad_roots(settings: ServiceSettings) -> None:
    """The models and data that the refused documents name."""
    models, data = settings.model_roots[0], settings.data_roots[0]
    (data / "link").symlink_to("/etc")
    (data / "empty").mkdir()
    (data / "empty.csv").touch()
    (data / "rows.xlsx").write_text("?")
    (data / "rows.csv").write_text("picture,label\na,b\n")
    for name, weights in (
        ("pickled", "pytorch_model.bin"),
        ("torn", "model.safetensors"),
        ("giant", "model.safetensors"),
    ):
        copy_config(models, name)
        size = (1 << 62) if name == "giant" else 5000
        (models / name / weights).write_bytes(size.to_bytes(8, "little") + b"{}")
    (models / "pipe").mkdir()
    os.mkfifo(models / "pipe" / "config.json")
    copy_config(models, "pipes")
    os.mkfifo(models / "pipes" / "model.safetensors")
    copy_config(models, "linked")
    outside = shutil.copy(models / "mlp" / "model.safetensors", data.parent / "weights")
    (models / "linked" / "model.safetensors").symlink_to(outside)
    copy_config(models, "coded", auto_map={"AutoModel": "evil.Model"})


def copy_config(models: Path, name: str, **changes: Any) -> None:
    (models / name).mkdir()
    config = json.loads((models / "mlp" / "config.json").read_text())
    (models / name / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.usefixtures("bad_roots")
@pytest.mark.parametrize(
    ("change", "code", "sentence"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_a_refused_document_gets_a_sentence_and_leaves_nothing(
    client: TestClient,
    document: dict[str, Any],
    settings: ServiceSettings,
    store: Store,
    change: Callable[[dict[str, Any]], None],
    code: str,
    sentence: str,
) -> None:
    change(document)
    for path in ("/jobs", "/jobs/validate"):
        answer = client.post(path, content=json.dumps(document), headers={"Content-Type": "application/json"})
        problem = answer.json()
        assert answer.status_code == 422, problem
        assert answer.headers["content-type"] == "application/problem+json"
        assert problem["type"] == f"urn:mergenet:problem:{code}"
        assert sentence in problem["detail"] + str(problem.get("errors")), problem
    assert list(settings.home.glob("jobs/*")) == []
    assert store.redis.keys("mergenet:job*") == []


@pytest.mark.usefixtures("bad_roots")
@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        (put("source.model.path", "nothing"), "/source/model/path"),
        (put("source.model.path", "torn"), "/source/model/path"),
        (put("target.data.train", "rows.csv"), "/target/data/train"),
        (put("target.model.config", {"model_type": "skynet"}), "/target/model/config"),
        (put("transfer.rank", 40_000), "/transfer/rank"),
    ],
)
def test_a_refused_model_or_data_set_has_the_pointer_of_its_field(
    client: TestClient, document: dict[str, Any], change: Callable[[dict[str, Any]], None], pointer: str
) -> None:
    change(document)
    problem = client.post("/jobs", json=document).json()
    assert [fault["pointer"] for fault in problem["errors"]] == [pointer], problem


def test_a_job_folder_that_cannot_be_written_is_removed(client: TestClient, document: dict[str, Any]) -> None:
    context = client.app.state.context  # type: ignore[attr-defined]
    unwritable = parse(document).model_copy(update={"name": "\ud800"})
    with pytest.raises(ValueError, match="surrogates"):
        submission.accept(context, unwritable, "someone", None)
    assert list((context.settings.home / "jobs").iterdir()) == []


def test_every_wrong_field_of_a_document_has_its_pointer(client: TestClient, document: dict[str, Any]) -> None:
    put("train.steps", 0)(document)
    put("target.data.trian", "x")(document)
    put("seeds", [0, "one"])(document)
    problem = client.post("/jobs", json=document).json()
    assert {fault["pointer"] for fault in problem["errors"]} == {"/train/steps", "/target/data/trian", "/seeds/1"}
    assert "3 faults" in problem["detail"]


@pytest.mark.parametrize(
    ("body", "kind", "status", "sentence"),
    [
        (b"", "application/json", 422, "the body is not JSON"),
        (b"{", "application/json", 422, "the body is not JSON"),
        (b"[]", "application/json", 422, "the body must be a JSON object, not list"),
        (b"[" * 100_000, "application/json", 422, "the body is not JSON"),
        (b"\xff\xfe{", "application/json", 422, "the body is not JSON"),
        (b'{"name": 1, "name": 2}', "application/json", 422, "the document repeats a key: name is given twice"),
        (b"name: 0x" + b"f" * 5000, "application/yaml", 422, "name: must be text"),
        (b"a: [", "application/yaml", 422, "neither YAML nor JSON"),
        (b"a: &x [1]\nb: *x", "application/yaml", 422, "aliases (*name) are not read"),
        (b"!!python/object/apply:os.system [id]", "application/yaml", 422, "neither YAML nor JSON"),
        (b"name: " + b"x" * (200 << 10), "application/yaml", 413, "a YAML document may have 131072 bytes"),
        (b"a=b", "application/x-www-form-urlencoded", 415, "a job document is application/json or application/yaml"),
        (b"{" + b" " * (2 << 20), "application/json", 413, "the body is longer than 1048576 bytes"),
    ],
)
def test_a_body_that_is_not_a_document_is_refused(
    client: TestClient, body: bytes, kind: str, status: int, sentence: str
) -> None:
    answer = client.post("/jobs", content=body, headers={"Content-Type": kind})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert sentence in answer.json()["detail"]


def test_a_job_too_large_for_every_worker_is_refused(
    client: TestClient, document: dict[str, Any], store: Store
) -> None:
    slot = Device(id="0", name="cpu", memory_bytes=1 << 20)
    small = WorkerInfo(
        name="w", host="h", state="idle", device="cpu", devices=(slot,), memory_bytes=1 << 20, cpus=1, seen_at=now()
    )
    report_alive(store.redis, small)
    problem = client.post("/jobs", json=document).json()
    assert problem["type"] == "urn:mergenet:problem:too-large"
    assert "the largest worker, w, has 0.0 GB" in problem["detail"]


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/jobs?limit=0", "limit: input should be greater than or equal to 1 (given: '0')"),
        ("/jobs?limit=500", "limit: input should be less than or equal to 200"),
        ("/jobs?after=zzz", "after: string should match pattern"),
        ("/jobs?status=done", "status 'done' is not a state; there are validating, queued"),
        ("/jobs?label=vision", "label 'vision' is not name=value"),
        ("/jobs/JOB/events?after=yesterday", "after: string should match pattern"),
        ("/jobs/JOB/events?after=٣", "after: string should match pattern"),
        ("/jobs/JOB/metrics?step_from=-1", "step_from: input should be greater"),
        (
            "/jobs/JOB/metrics?trial=nothing",
            "trial 'nothing' is not one of this job's: transfer-0, control-0, finalize",
        ),
        ("/jobs/JOB/logs?trial=../../etc", "trial '../../etc' is not one of this job's"),
        ("/jobs/JOB/logs?tail=0", "tail: input should be greater"),
    ],
)
def test_a_wrong_parameter_is_refused(client: TestClient, post: Callable[..., str], path: str, sentence: str) -> None:
    answer = client.get(path.replace("JOB", post()))
    assert answer.status_code == 422
    assert sentence in answer.json()["detail"]
    name = path.partition("?")[2].partition("=")[0]
    assert [fault["pointer"] for fault in answer.json()["errors"]] == [f"?{name}"]
