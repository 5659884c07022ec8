"""How a teacher's outputs are read: stored for all inputs before the first step, or computed in each step.

They are stored where there is one row per example and all of them are small; a language model's, with a number per
token and entry of the vocabulary, are not, and retrieval's depend on the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mergenet_core.errors import DataRefused
from mergenet_core.spec.job import JobSpec
from mergenet_core.spec.task_info import TASKS
from mergenet_core.tasks.task import Copied, Outputs, Task, pool_of
from mergenet_core.training.distillation.distill import ReadTeacher
from mergenet_core.training.distributed.world import World
from mergenet_core.training.loop import Model, forward_all, model_inputs

STORED_BYTES = 2**28
"""The most memory of a host's process in which a teacher's outputs are stored."""
_COMPARED = 64
"""Examples whose tokens are compared."""


def open_outputs(predict: Model, task: Task, job: JobSpec, world: World) -> ReadTeacher:
    """The outputs of a teacher in evaluation mode, whose examples are those of `task`, for the inputs of each step.

    Raises: `DataRefused` if copies are to be read and the teacher reads images of another size.
    """
    if job.transfer.distill is not None and job.transfer.distill.copies:
        return _of_copies(predict, task, job, world)
    examples = pool_of(task)
    if task.row_outputs and len(examples) * len(task.labels) * 4 * len(task.row_outputs) <= STORED_BYTES:
        return _stored(predict, task, job.train.batch_size, world)

    @torch.no_grad()
    def read(index_b: Tensor, draw: int) -> Outputs:
        return predict(**_on_device(model_inputs(examples.batch(index_b), task), world))

    return read


def check_same_tokens(job: JobSpec, task: Task, target: Task) -> None:
    """Refuse a teacher that reads other tokens than the target, where outputs belong to tokens.

    Raises: `DataRefused` naming the remedy.
    """
    if not TASKS[job.target.task].by_token:
        return
    theirs, own = pool_of(task), pool_of(target)
    index_b = torch.linspace(0, len(own) - 1, _COMPARED).long()
    same = len(theirs) == len(own) and torch.equal(theirs.batch(index_b)["input_ids"], own.batch(index_b)["input_ids"])
    if not same:
        raise DataRefused(
            f"transfer.distill: the outputs of {job.target.task} belong to tokens, and the source's tokenizer makes "
            "other tokens than the target's; give both the same tokenizer (target.model.tokenizer), or leave the "
            "distill arms out"
        )


def _stored(predict: Model, task: Task, batch_size: int, world: World) -> ReadTeacher:
    examples, (name,) = pool_of(task), task.row_outputs
    rows_nl = forward_all(predict, task, examples, world, batch_size, lambda outputs, _: outputs[name])

    def read(index_b: Tensor, draw: int) -> Outputs:
        return {name: rows_nl[index_b].to(world.device)}

    return read


def _of_copies(predict: Model, task: Task, job: JobSpec, world: World) -> ReadTeacher:
    """The teacher's outputs for the training images and their copies, the same ones that the target reads.

    Raises: `DataRefused` if the teacher reads images of another size, which are shifted by other shares of it.
    """
    size, own = task.settings.get("image_size"), job.target.data.image_size
    if size != own:
        raise DataRefused(
            f"transfer.distill.copies: the source reads images of {size} pixels, the target of {own}; set "
            "target.data.image_size to the source's, or leave copies out"
        )

    @torch.no_grad()
    def read(index_b: Tensor, draw: int) -> Outputs:
        assert isinstance(task.train, Copied), "the spec allows copies for images only"
        return predict(**_on_device(task.train.with_copies(index_b, draw), world))

    return read


def _on_device(batch: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    return {name: X.to(world.device) for name, X in batch.items()}
