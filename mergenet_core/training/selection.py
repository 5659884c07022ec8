"""Which of a run's weights were best on the validation split. The test split is not used here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypedDict

from mergenet_core.transfer.shards import FlatSlice


class SelectionState(TypedDict):
    """A selection without its weights; the keys are a checkpoint's."""

    evaluated: int
    newest: float | None
    best: float | None
    best_step: int
    terms: list[float]


@dataclass
class Selection:
    """The best validation metric so far, and this process's pieces of the weights that reached it."""

    evaluated: int = -1
    """The step of the last evaluation; −1 before the first."""
    newest: float | None = None
    best: float | None = None
    best_step: int = 0
    weights: dict[str, FlatSlice] | None = None
    terms: list[float] = field(default_factory=list)
    """The metric's term for each validation example after the last step; empty before it."""

    def update(self, step: int, metric: float, weights: Callable[[], dict[str, FlatSlice]]) -> None:
        """Note a metric; weights are taken only if it is better than all before, so that a tie goes to the earlier."""
        self.evaluated, self.newest = step, metric
        if self.best is None or metric > self.best:
            self.weights = None  # the old ones are freed first: two copies may not fit into memory
            self.best, self.best_step, self.weights = metric, step, weights()

    def state_dict(self) -> SelectionState:
        """All but the weights."""
        return {
            "evaluated": self.evaluated,
            "newest": self.newest,
            "best": self.best,
            "best_step": self.best_step,
            "terms": self.terms,
        }

    def load_state_dict(self, state: SelectionState, weights: dict[str, FlatSlice] | None) -> None:
        """Go on from where `state_dict` was taken."""
        self.evaluated, self.newest = state["evaluated"], state["newest"]
        self.best, self.best_step, self.weights = state["best"], state["best_step"], weights
        self.terms = state["terms"]
