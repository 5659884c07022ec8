"""Which of a run's weights were best on the validation split. The test split is never looked at here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mergenet_core.transfer.shards import FlatSlice


@dataclass
class Selection:
    """The best validation metric so far, and what this process holds of the weights that had it."""

    evaluated: int = -1
    """The step that was looked at last; −1 before the first."""
    newest: float | None = None
    best: float | None = None
    best_step: int = 0
    weights: dict[str, FlatSlice] | None = None

    def look(self, step: int, metric: float, weights: Callable[[], dict[str, FlatSlice]]) -> None:
        """Note a metric; weights are taken only when it is better than all before, so a tie goes to the earlier."""
        self.evaluated, self.newest = step, metric
        if self.best is None or metric > self.best:
            self.weights = None  # the old ones go first: two copies at a time may not fit
            self.best, self.best_step, self.weights = metric, step, weights()

    def state_dict(self) -> dict[str, Any]:
        """All but the weights."""
        return {
            "evaluated": self.evaluated,
            "newest": self.newest,
            "best": self.best,
            "best_step": self.best_step,
        }

    def load_state_dict(self, state: dict[str, Any], weights: dict[str, FlatSlice] | None) -> None:
        """Go on where `state_dict` was taken."""
        self.evaluated, self.newest = state["evaluated"], state["newest"]
        self.best, self.best_step, self.weights = state["best"], state["best_step"], weights
