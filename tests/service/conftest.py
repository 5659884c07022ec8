"""A service with a Redis of its own, and a job document that it accepts."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from mergenet_core.store.jobs import Store
from service.server.app import create_app
from service.server.settings import ServiceSettings
from tests.conftest import RedisServer

KEY = "a-key-for-tests-only"


@pytest.fixture
def settings(tmp_path: Path, redis_server: RedisServer) -> ServiceSettings:
    return roots(tmp_path, redis_server.url)


def roots(folder: Path, redis_url: str) -> ServiceSettings:
    """Settings with a home, and with roots that hold the model and data of `job_document`."""
    write_model(folder / "models" / "mlp", [[144, 32], [32, 32]])
    for split in ("train", "test"):
        (folder / "data" / "digits" / split / "one").mkdir(parents=True)
    return ServiceSettings(
        home=folder / "home",
        redis_url=redis_url,  # type: ignore[arg-type]
        model_roots=(folder / "models",),
        data_roots=(folder / "data",),
        api_key=KEY,  # type: ignore[arg-type]
        reconcile_seconds=0.2,
    )


@pytest.fixture
def client(settings: ServiceSettings) -> Iterator[TestClient]:
    """A client of the API with the operator's key."""
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
        "transfer": {"method": "anchored"},
        "train": {"steps": 4, "batch_size": 4},
        "labels": {"team": "vision"},
    }


def write_model(folder: Path, layers: list[list[int]]) -> None:
    """Write a model folder like that of `save_pretrained`, with weights of zero."""
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


@pytest.fixture(scope="session")
def server(_redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real API process with the same Redis; `settings_of` has its settings."""
    folder = tmp_path_factory.mktemp("server")
    settings = roots(folder, _redis_server.url)
    process, url = start_server(settings)
    SERVERS[url] = settings
    yield url
    process.terminate()
    process.wait(10)


SERVERS: dict[str, ServiceSettings] = {}


def settings_of(url: str) -> ServiceSettings:
    return SERVERS[url]


def start_server(
    settings: ServiceSettings, changes: dict[str, str] | None = None, log: Path | None = None
) -> tuple[subprocess.Popen[bytes], str]:
    """Start a real API process on a socket that already listens, so that requests need not wait for it."""
    listening = socket.create_server(("127.0.0.1", 0))
    assert settings.api_key is not None
    environment = os.environ | {
        "MERGENET_HOME": str(settings.home),
        "MERGENET_REDIS_URL": settings.redis_url.get_secret_value(),
        "MERGENET_MODEL_ROOTS": str(settings.model_roots[0]),
        "MERGENET_DATA_ROOTS": str(settings.data_roots[0]),
        "MERGENET_API_KEY": settings.api_key.get_secret_value(),
        "MERGENET_RECONCILE_SECONDS": "0.2",
        **(changes or {}),
    }
    command = [sys.executable, "-m", "service", "--fd", str(listening.fileno())]
    with log.open("wb") if log is not None else nullcontext() as output:
        process = subprocess.Popen(
            command, env=environment, pass_fds=(listening.fileno(),), stdout=output, stderr=output
        )
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    listening.close()
    return process, url
