"""A user's path ends inside the roots, however it is spelled."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergenet_core.errors import PathRefused
from mergenet_core.storage.paths import Roots


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    for name in ("models/small", "more/large", "data", "secret"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "models" / "way-out").symlink_to(tmp_path / "secret")
    (tmp_path / "models" / "loop").symlink_to(tmp_path / "models" / "loop")
    return Roots(models=(tmp_path / "models", tmp_path / "more"), data=(tmp_path / "data",))


def test_a_path_is_found_in_any_root(roots: Roots, tmp_path: Path) -> None:
    assert roots.model("small", "f") == tmp_path / "models" / "small"
    assert roots.model("large", "f") == tmp_path / "more" / "large"
    assert roots.model(str(tmp_path / "more" / "large"), "f") == tmp_path / "more" / "large"
    assert roots.model("small/../small", "f") == tmp_path / "models" / "small"


@pytest.mark.parametrize("text", ["../secret", "small/../../secret", "way-out", "/etc/passwd", "way-out/../../secret"])
def test_a_way_out_is_refused(roots: Roots, text: str) -> None:
    with pytest.raises(PathRefused, match="outside the model roots"):
        roots.model(text, "source.model.path")


@pytest.mark.parametrize("text", ["smal", "loop", "x" * 300, "small/none"])
def test_a_missing_path_is_refused(roots: Roots, text: str) -> None:
    with pytest.raises(PathRefused, match=r"source\.model\.path: .* does not exist below"):
        roots.model(text, "source.model.path")


def test_models_are_not_data(roots: Roots) -> None:
    with pytest.raises(PathRefused, match="data roots"):
        roots.dataset("small", "target.data.train")
