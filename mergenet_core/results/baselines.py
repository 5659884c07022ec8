"""Trivial models in the report: fitted to the same labelled examples, shown beside the arms, never a comparison."""

from __future__ import annotations

from collections.abc import Iterable

from mergenet_core.records.job import Trial
from mergenet_core.records.record import Record
from mergenet_core.results.comparisons import Difference, difference, standard_deviation

TITLES = {
    "tf-idf": "logistic regression on TF-IDF of the words that the target reads",
    "tf-idf-whole": "logistic regression on TF-IDF of the whole texts, which the target cuts",
    "pixels": "logistic regression on the pixels",
    "question": "most frequent answer to the question",
    "probe": "logistic regression on the frozen source's features",
}
"""What each baseline is, by its name in a trial's result."""


class Baseline(Record):
    """A trivial model over the seeds, on the test split; fractions, not percent."""

    name: str
    """A key of `TITLES`."""
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    """Its test metric, one value per seed."""
    mean: float
    sd: float | None
    """Sample standard deviation; null for a single seed."""
    difference: Difference
    """To the control of the same seed; it is not tested."""

    @property
    def title(self) -> str:
        """What it is, in words."""
        return TITLES[self.name]


def collect_baselines(trials: Iterable[Trial], control: dict[int, float]) -> tuple[Baseline, ...]:
    """The baselines that a job's trials measured; `control` is its test metric by seed."""
    found: dict[str, dict[int, float]] = {}
    for trial in trials:
        for name, value in (trial.result.baselines if trial.result is not None else {}).items():
            found.setdefault(name, {})[trial.seed] = value
    return tuple(_baseline(name, found[name], control) for name in TITLES if name in found)


def _baseline(name: str, by_seed: dict[int, float], control: dict[int, float]) -> Baseline:
    seeds = tuple(sorted(by_seed))
    values = tuple(by_seed[seed] for seed in seeds)
    return Baseline(
        name=name,
        seeds=seeds,
        values=values,
        mean=sum(values) / len(values),
        sd=standard_deviation(values) if len(values) > 1 else None,
        difference=difference(by_seed, control, "control"),
    )
