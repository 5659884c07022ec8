"""A frozen source as a model that runs: for a fit, with a sham's weights where the arm is one."""

from __future__ import annotations

import torch
from torch import nn

from mergenet_core.models.describe import model_info
from mergenet_core.models.loading import load_trained
from mergenet_core.models.untrained_source import untrained_weights
from mergenet_core.training.context import TrialContext
from mergenet_core.training.sources import frozen_source_info, frozen_source_path, sham_of
from mergenet_core.transfer.sham import ShamWeights


def open_source_model(context: TrialContext, labels: tuple[str, ...]) -> tuple[nn.Module, tuple[int, ...] | None]:
    """The source in evaluation mode, and its logit of each of the target's labels; None where it has other labels.

    In a sham's arm its weights have no knowledge. A source without a head for the same labels has a new one, which
    nothing reads.

    Raises: `ModelRefused`, `CheckpointInvalid`, `PathRefused`.
    """
    job, trial = context.job, context.trial
    path = frozen_source_path(context)
    known = frozen_source_info(job, path, context.roots).labels
    same = known is not None and sorted(known) == sorted(labels)
    own = known if known is not None and same else labels
    model = load_trained(path, job.target.task, own, seed=trial.seed)
    _lose_knowledge(model, context)
    columns = tuple(own.index(label) for label in labels) if same and job.transfer.include != "no-head" else None
    return model.to(context.world.device).eval().requires_grad_(False), columns


def _lose_knowledge(model: nn.Module, context: TrialContext) -> None:
    """Give the model the weights of the arm's sham, if the arm is one. Raises: `ModelRefused`."""
    job, trial = context.job, context.trial
    state = model.state_dict()
    sham = sham_of(trial)
    if trial.arm == "sham-untrained":
        changed = untrained_weights(model_info(model), job.target.task, trial.seed, None)
    elif sham is not None:
        weights = ShamWeights(state, sham)
        changed = {name: weights[name] for name in state}
    else:
        return
    with torch.no_grad():
        for name, W in state.items():
            W.copy_(changed[name])
