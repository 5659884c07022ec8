"""A service over a private Redis, and a job document that it accepts."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from mergenet_core.jobs.store import Store
from service.app import create_app
from service.settings import ServiceSettings
from tests.conftest import RedisServer

KEY = "a-key-for-tests-only"


@pytest.fixture
def settings(tmp_path: Path, redis_server: RedisServer) -> ServiceSettings:
    """A home with model and data roots that hold what `document` names."""
    write_model(tmp_path / "models" / "mlp", [[144, 32], [32, 32]])
    data = tmp_path / "data"
    for split in ("train", "test"):
        (data / "digits" / split / "one").mkdir(parents=True)
    return ServiceSettings(
        home=tmp_path / "home",
        redis_url=redis_server.url,  # type: ignore[arg-type]
        model_roots=(tmp_path / "models",),
        data_roots=(data,),
        api_key=KEY,  # type: ignore[arg-type]
        reconcile_seconds=0.2,
    )


@pytest.fixture
def client(settings: ServiceSettings) -> Iterator[TestClient]:
    """The API with the operator's key."""
    with TestClient(create_app(settings), headers={"Authorization": f"Bearer {KEY}"}) as client:
        yield client


@pytest.fixture
def store(settings: ServiceSettings) -> Store:
    return Store(settings.redis())


@pytest.fixture
def document() -> dict[str, Any]:
    return job_document()


@pytest.fixture
def post(client: TestClient, document: dict[str, Any]) -> Callable[..., str]:
    """Post the job and return its id."""

    def post(**changes: Any) -> str:
        answer = client.post("/jobs", json=document | changes)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    return post


def job_document() -> dict[str, Any]:
    mlp = {"model_type": "mergenet-mlp", "image_size": 12, "num_channels": 1, "num_labels": 2}
    return {
        "version": 1,
        "name": "digits",
        "source": {"model": {"path": "mlp"}},
        "target": {
            "model": {"config": mlp | {"hidden_sizes": [16]}},
            "task": "image-classification",
            "data": {"train": "digits/train", "test": "digits/test", "image_size": 12},
        },
        "train": {"steps": 4, "batch_size": 4},
        "labels": {"team": "vision"},
    }


def write_model(folder: Path, layers: list[list[int]]) -> None:
    """A model folder as save_pretrained leaves one, its weights all zero."""
    folder.mkdir(parents=True)
    config = {
        "model_type": "mergenet-mlp",
        "architectures": ["MergeNetMlpForImageClassification"],
        "image_size": 12,
        "num_channels": 1,
        "hidden_sizes": [32, 32],
        "id2label": {"0": "zero", "1": "one"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {f"layers.{index}.weight": layer[::-1] for index, layer in enumerate(layers)}
    shapes |= {f"layers.{index}.bias": layer[1:] for index, layer in enumerate(layers)}
    shapes |= {"head.weight": [2, layers[-1][1]], "head.bias": [2]}
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * (shape[0] * (shape[1] if len(shape) > 1 else 1))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))
