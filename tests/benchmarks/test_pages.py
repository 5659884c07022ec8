"""Pages of docs/evidence are what the benchmarks write from the numbers in the same folder."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EVIDENCE = ROOT / "docs" / "evidence"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("sharding_page", "sharding"),
        ("adapter_cost", "adapter_cost"),
        ("adapter_rates", "adapter_rates"),
        ("equal_compute", "equal_compute"),
        ("pack_cost", "packs"),
        ("search", "LOG"),
        ("auto_null", "auto_null"),
    ],
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


def test_auto_takes_a_useless_candidate_in_at_most_five_percent_of_cases():
    cases = json.loads((EVIDENCE / "auto_null.json").read_text())["null"]
    assert {(case["examples"], case["tried"]) for case in cases} == {
        (n, k) for n in (100, 200, 300, 1000) for k in (1, 2, 4)
    }
    assert max(case["paired"] for case in cases) <= 0.05


def test_the_simulation_asks_the_rule_that_jobs_use(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import auto_null
    import numpy as np

    stored = json.loads((EVIDENCE / "auto_null.json").read_text())["null"]
    case = next(case for case in stored if (case["examples"], case["tried"], case["accuracy"]) == (300, 2, 0.5))
    again = auto_null.taken(np.random.default_rng(7), 300, 2, case["accuracy"], case["agreement"])
    assert abs(again["paired"] - case["paired"]) < 0.01
