import pytest

from mergenet_core.storage.paths import Roots
from tests.training.tiny import write_world


@pytest.fixture(scope="session")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Roots:
    return write_world(tmp_path_factory.mktemp("world"))
