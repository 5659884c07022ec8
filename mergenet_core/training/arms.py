"""From a trial's arm to what it trains. Target, data and batches are the same in every arm of a seed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from mergenet_core.pairing.pair import pair
from mergenet_core.pairing.rank import limit_rank
from mergenet_core.spec.job import SHAMS, TransferSpec
from mergenet_core.training.context import TrialContext
from mergenet_core.training.engines.engine import named_shards
from mergenet_core.training.fit.start import FitStart
from mergenet_core.training.learners import Learner, open_learner, source_spec, target_spec
from mergenet_core.training.loop import Training
from mergenet_core.training.protocols import AttemptContext
from mergenet_core.training.sources import Source, frozen_source, shared_processor, training_source
from mergenet_core.transfer.cycle import Transfer

TRANSFERS = ("transfer", "transfer+distill", "copy", *SHAMS)


def prepare_training(context: TrialContext, attempt: AttemptContext | None = None) -> Training:
    """What a trial trains: the source, or the target with its arm's transfer.

    A fit takes a while: it is reported to `attempt`, which may stop it.

    Raises: `ModelRefused`, `DataRefused`, `PairingRefused`, `PathRefused`, `CheckpointInvalid`.
    """
    job, trial, world = context.job, context.trial, context.world
    if trial.kind == "source":
        source = open_learner(source_spec(job), context.roots, world, seed=job.source.seed)
        return Training(source, seed=job.source.seed, field="source.train")
    processor = shared_processor(context)
    open_target = partial(open_learner, target_spec(job), context.roots, world, seed=trial.seed)
    if job.transfer.method == "fit" and trial.arm in TRANSFERS:
        start = FitStart(context, attempt)
        target = open_target(shared_processor=processor, start=start)
        return Training(target, seed=trial.seed, fitted=start.fitted(target))
    target = open_target(shared_processor=processor)
    if job.source.mode == "joint":
        return _prepare_joint(context, target)
    if trial.arm not in TRANSFERS:
        return Training(target, seed=trial.seed)
    source_of_transfer = training_source(target, trial) if job.source.mode == "self" else frozen_source(context)
    return Training(target, seed=trial.seed, transfer=_transfer(context, source_of_transfer, target, job.transfer))


def _prepare_joint(context: TrialContext, target: Learner) -> Training:
    """The target with a source that learns together with it.

    Without a transfer (a control) the source is trained only if it is to gain from the target as well, to be compared.
    """
    job, seed = context.job, context.trial.seed
    transfers, two_way = context.trial.arm in TRANSFERS, job.transfer.back_cycle is not None
    if not transfers and not two_way:
        return Training(target, seed=seed)
    spec = source_spec(job)
    world = replace(context.world, precision=spec.train.precision)
    source = open_learner(spec, context.roots, world, seed=seed)
    transfer = back = None
    if transfers:
        transfer = _transfer(context, training_source(source, context.trial), target, job.transfer)
        if two_way:
            settings = job.transfer.model_copy(update={"cycle": job.transfer.back_cycle})
            back = _transfer(context, training_source(target, context.trial), source, settings)
    joint_source = Training(source, seed=seed, field="source.train", transfer=back)
    return Training(target, seed=seed, transfer=transfer, joint_source=joint_source)


def _transfer(context: TrialContext, source: Source, target: Learner, spec: TransferSpec) -> Transfer:
    """The arm's transfer from a source into a model in training. Raises: `PairingRefused`."""
    trial, pairing = context.trial, pair(source.info, target.info, spec)
    return Transfer(
        source.weights,
        named_shards(target.engine),
        limit_rank(pairing, source.rank, spec.rank),
        spec,
        steps=target.engine.spec.steps,
        seed=trial.seed,
        method="copy" if trial.arm == "copy" else None,
    )
