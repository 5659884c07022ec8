from pathlib import Path

import pytest
import torch

from mergenet_core.storage.paths import Roots
from tests.training.tiny import write_world


@pytest.fixture(scope="session")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Roots:
    torch.set_num_threads(1)
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def job_folder(tmp_path: Path) -> Path:
    return tmp_path / "job"
