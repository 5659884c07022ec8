"""Pages of docs/evidence are what the benchmarks write from the numbers beside them."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EVIDENCE = ROOT / "docs" / "evidence"


@pytest.mark.parametrize(
    ("module", "name"),
    [("sharding_page", "sharding"), ("adapter_cost", "adapter_cost"), ("pack_cost", "packs"), ("search", "LOG")],
)
def test_a_page_is_written_from_its_numbers(monkeypatch, module, name):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    __import__(module)
    numbers = json.loads((EVIDENCE / f"{name}.json").read_text())
    assert sys.modules[module].page(numbers) == (EVIDENCE / f"{name}.md").read_text()


def test_the_index_is_written_from_the_settings_numbers(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import evidence

    assert evidence.index_page() == (EVIDENCE / "README.md").read_text()


def test_a_setting_s_page_is_written_from_its_trials(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import evidence

    for name in evidence.SETTINGS:
        numbers = json.loads((EVIDENCE / f"{name}.json").read_text())
        report = evidence.report_of(numbers)
        assert numbers["report"] == report.model_dump(mode="json", exclude={"job"}), name
        assert evidence.setting_page(name, numbers) == (EVIDENCE / f"{name}.md").read_text(), name
