"""The documents: links and named files exist, jobs are valid, and README has the numbers of the evidence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from mergenet_core.spec.parse import parse

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
JOBS = sorted([*(ROOT / "examples").glob("*.yaml"), *(ROOT / "benchmarks" / "settings").glob("*.yaml")])
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
CODE_PATH = re.compile(r"`((?:mergenet_core|service|workers|benchmarks|examples|deploy|tests|docs)/[\w/.-]*)`")
YAML = re.compile(r"```yaml\n(.*?)```", re.DOTALL)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_link_to_a_file_leads_to_one(document: Path) -> None:
    links = [link for link in LINK.findall(document.read_text()) if "://" not in link]
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_file_that_is_named_exists(document: Path) -> None:
    assert [path for path in CODE_PATH.findall(document.read_text()) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("document", [ROOT / "README.md", ROOT / "docs" / "jobs.md"], ids=name)
def test_a_whole_job_in_a_document_is_valid(document: Path) -> None:
    found = [text for text in YAML.findall(document.read_text()) if "target" in yaml.safe_load(text)]
    assert len(found) == 1
    parse(found[0])


@pytest.mark.parametrize("job", JOBS, ids=name)
def test_every_job_file_is_valid(job: Path) -> None:
    parse(job.read_text())


def test_the_way_of_a_job_names_functions_that_exist() -> None:
    row = re.compile(r"^\| \d+ \| .*? \| `([\w/]+\.py)` \| `([\w.]+)` \|", re.MULTILINE)
    steps = row.findall((ROOT / "CONTRIBUTING.md").read_text())
    assert len(steps) == 20
    missing = [
        f"{file}: {name}"
        for file, function in steps
        for name in function.split(".")
        if not re.search(rf"^ *(?:async )?(?:def|class) {name}\b", (ROOT / file).read_text(), re.MULTILINE)
    ]
    assert missing == []


def test_the_numbers_of_the_readme_are_those_of_the_evidence() -> None:
    readme, evidence = ROOT / "README.md", ROOT / "docs" / "evidence" / "README.md"
    measured = dict(rows(evidence))
    shown = {setting: cells for setting, cells in rows(readme) if setting in measured}
    columns = (1, 2, 3, 7)  # control, transfer, sham, auto
    assert shown == {setting: [cells[column] for column in columns] for setting, cells in measured.items()}


def rows(document: Path) -> list[tuple[str, list[str]]]:
    """The rows of a document's tables whose first cell begins with a link: its text, and the other cells unstyled."""
    found = []
    for line in document.read_text().splitlines():
        if line.startswith("| ["):
            first, *cells = line.strip("| ").split(" | ")
            found.append((first[1 : first.index("]")], [cell.replace("−", "-").replace("*", "") for cell in cells]))
    return found
