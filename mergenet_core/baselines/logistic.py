"""Multinomial logistic regression, by which trivial baselines and linear probes are fitted.

Legend: n examples, d features, l labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from scipy.special import logsumexp
from torch import Tensor

Floats: TypeAlias = NDArray[np.floating]
Matrix: TypeAlias = "Floats | csr_matrix"
"""Features of some examples, one row each. Shapes: (n, d)."""
PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""The weights of the squared norm that are tried on validation, the strongest first."""
ITERATIONS = 200


class Labelled(Protocol):
    """Examples whose labels are known, or unlabelled ones."""

    @property
    def labels(self) -> Tensor | None:
        """The label of each example; None for unlabelled ones."""


@dataclass(frozen=True)
class LabelledFeatures:
    """A split as a logistic regression reads it."""

    X_nd: Matrix
    labels_n: NDArray[np.integer]


def labelled(features: Sequence[Matrix], splits: Sequence[Labelled]) -> list[LabelledFeatures]:
    """The features of each split with its labels."""
    found = []
    for X_nd, split in zip(features, splits, strict=True):
        assert split.labels is not None, "a regression is fitted to labelled examples"
        found.append(LabelledFeatures(X_nd, split.labels.numpy()))
    return found


def accuracy_on_test(splits: Sequence[LabelledFeatures], labels: int) -> float:
    """The accuracy of the regression whose penalty is best on validation; of equal ones the strongest is taken.

    `splits` are train, validation and test.
    """
    train, validation, test = splits
    best = max((_fit(train, labels, penalty) for penalty in PENALTIES), key=lambda W: _accuracy(W, validation))
    return _accuracy(best, test)


def standardise(splits: Sequence[Floats]) -> list[Floats]:
    """Features with mean 0 and deviation 1 on the first split; one that is constant there becomes 0."""
    mean_d, deviation_d = splits[0].mean(axis=0), splits[0].std(axis=0)
    scale_d = np.where(deviation_d > 1e-6, 1 / np.maximum(deviation_d, 1e-6), 0.0)
    return [(X_nd - mean_d) * scale_d for X_nd in splits]


def _fit(train: LabelledFeatures, labels: int, penalty: float) -> Floats:
    """Weights and, in the last row, biases. Shapes: (d + 1, l).

    Equation: min over W and b of the mean cross entropy of softmax(X W + b) + penalty / 2 · ‖W‖².
    """
    n, d = train.X_nd.shape
    own_nl = np.eye(labels)[train.labels_n]

    def loss(flat: Floats) -> tuple[float, Floats]:
        W_dl, b_l = flat[: d * labels].reshape(d, labels), flat[d * labels :]
        logits_nl = train.X_nd @ W_dl + b_l
        log_nl = logits_nl - logsumexp(logits_nl, axis=1, keepdims=True)
        error_nl = (np.exp(log_nl) - own_nl) / n
        gradient = np.concatenate([(train.X_nd.T @ error_nl + penalty * W_dl).ravel(), error_nl.sum(axis=0)])
        return float(penalty / 2 * (W_dl**2).sum() - (own_nl * log_nl).sum() / n), gradient

    start = np.zeros((d + 1) * labels)
    found: Floats = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS}).x
    return found.reshape(d + 1, labels)


def _accuracy(weights: Floats, split: LabelledFeatures) -> float:
    logits_nl = split.X_nd @ weights[:-1] + weights[-1]
    return float((logits_nl.argmax(axis=1) == split.labels_n).mean())
