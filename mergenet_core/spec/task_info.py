"""The tasks that a model can learn: one row each, with everything that code without torch needs to know of them.

A task is its file or folder in `mergenet_core/tasks/` and its row in `TASKS`. A row with `head` uses the heads and the
model types of another task; without it, the families declare a head for the task (`architectures/families/`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import GetPydanticSchema
from pydantic_core import core_schema

from mergenet_core.spec.data import DataSpec


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """What is known of a task without its data and without torch."""

    name: str
    loader: str
    """The function that reads its examples, as `module:function` below `mergenet_core.tasks`."""
    inputs: tuple[Literal["text", "images"], ...]
    """What its model reads: texts come through a tokenizer, images through an image processor."""
    columns: Callable[[DataSpec], tuple[str, ...]]
    """The columns that a table of examples must have."""
    answer_column: Callable[[DataSpec], str] | None = None
    """Of these the one with what is to be learned, which unlabelled inputs lack; None where the inputs are all."""
    metric: str
    """The metric that selection and report use; higher is better."""
    auto_class: str
    """The class of transformers that builds its models."""
    pipeline_tag: str
    """What the model hub calls the task."""
    head: str = ""
    """The task whose heads and model types it uses; empty for its own."""
    one_label: bool = False
    """Each example has one label out of a fixed set."""
    several_right: bool = False
    """Several labels can be right for an example, so DKD, which sets one apart, does not apply."""
    by_token: bool = False
    """Its outputs belong to tokens, so a teacher's can be compared only if it has the same tokenizer."""
    fixed_labels: tuple[str, ...] | None = None
    """The label space, where it is the same for every data set: empty for a head over the vocabulary."""
    contrastive: bool = False
    """The loss compares the examples of a batch with one another, so a batch must stay whole."""
    augments: bool = False
    """Training images may be shifted and mirrored."""
    dataset_keys: tuple[str, ...] = ()
    """Keys at the beginning of the JSON files in which the task's own data set is published, such as SQuAD's."""
    separate_annotations: bool = False
    """The data set's answers are published in a file of their own."""
    reads_cifar: bool = False
    """Files of CIFAR-100's binary version are read as well."""

    @property
    def head_task(self) -> str:
        """The task by which families and model types are looked up."""
        return self.head or self.name

    @property
    def reads_text(self) -> bool:
        """Whether its model needs a tokenizer."""
        return "text" in self.inputs

    @property
    def reads_images(self) -> bool:
        """Whether its model reads images."""
        return "images" in self.inputs

    @property
    def names_image_files(self) -> bool:
        """Whether the JSON files of its data set name images that lie in a folder."""
        return self.reads_images and bool(self.dataset_keys)

    def input_columns(self, data: DataSpec) -> tuple[str, ...]:
        """The columns that a table of unlabelled inputs must have."""
        answer = None if self.answer_column is None else self.answer_column(data)
        return tuple(name for name in self.columns(data) if name != answer)

    def is_dataset_json(self, head: str) -> bool:
        """Whether a JSON file that begins with `head` is in the form of the task's data set, and not a table."""
        return any(json.dumps(key) in head for key in self.dataset_keys)

    def columns_in_json(self, head: str, wanted: tuple[str, ...]) -> list[str]:
        """The wanted columns named at the beginning of a JSON file; all, where it is in the form of the data set."""
        if self.is_dataset_json(head):
            return list(wanted)
        return [name for name in wanted if json.dumps(name) in head or json.dumps(name, ensure_ascii=False) in head]


TASKS: Mapping[str, TaskInfo] = {
    info.name: info
    for info in (
        TaskInfo(
            name="text-classification",
            loader="text_classification:load_text_classification",
            inputs=("text",),
            columns=lambda data: (data.text, data.label),
            answer_column=lambda data: data.label,
            metric="accuracy",
            auto_class="AutoModelForSequenceClassification",
            pipeline_tag="text-classification",
            one_label=True,
        ),
        TaskInfo(
            name="image-classification",
            loader="image_classification:load_image_classification",
            inputs=("images",),
            columns=lambda data: (data.image, data.label),
            answer_column=lambda data: data.label,
            metric="accuracy",
            auto_class="AutoModelForImageClassification",
            pipeline_tag="image-classification",
            one_label=True,
            augments=True,
            reads_cifar=True,
        ),
        TaskInfo(
            name="question-answering",
            loader="question_answering.task:load_question_answering",
            inputs=("text",),
            columns=lambda data: (data.question, data.context, data.answers),
            answer_column=lambda data: data.answers,
            metric="f1",
            auto_class="AutoModelForQuestionAnswering",
            pipeline_tag="question-answering",
            by_token=True,
            fixed_labels=("start", "end"),
            dataset_keys=("paragraphs",),
        ),
        TaskInfo(
            name="causal-language-modelling",
            loader="language_modelling.task:load_causal_language_modelling",
            inputs=("text",),
            columns=lambda data: (data.text,),
            metric="token_accuracy",
            auto_class="AutoModelForCausalLM",
            pipeline_tag="text-generation",
            by_token=True,
            fixed_labels=(),
        ),
        TaskInfo(
            name="masked-language-modelling",
            loader="language_modelling.task:load_masked_language_modelling",
            inputs=("text",),
            columns=lambda data: (data.text,),
            metric="token_accuracy",
            auto_class="AutoModelForMaskedLM",
            pipeline_tag="fill-mask",
            by_token=True,
            fixed_labels=(),
        ),
        TaskInfo(
            name="visual-question-answering",
            loader="visual_question_answering.task:load_visual_question_answering",
            inputs=("text", "images"),
            columns=lambda data: (data.image, data.question, data.answers),
            answer_column=lambda data: data.answers,
            metric="accuracy",
            auto_class="AutoModelForVisualQuestionAnswering",
            pipeline_tag="visual-question-answering",
            several_right=True,
            dataset_keys=("questions",),
            separate_annotations=True,
        ),
        TaskInfo(
            name="image-text-retrieval",
            loader="image_text_retrieval.task:load_image_text_retrieval",
            inputs=("text", "images"),
            columns=lambda data: (data.image, data.caption),
            metric="mean_recall",
            auto_class="AutoModel",
            pipeline_tag="zero-shot-image-classification",
            fixed_labels=(),
            contrastive=True,
            dataset_keys=("annotations", "file_name"),
        ),
    )
}
"""Every task by its name in the job document, in the order in which the documents list them."""

TaskName = Annotated[str, GetPydanticSchema(lambda _source, _handler: core_schema.literal_schema(list(TASKS)))]
"""The name of a task: one of `TASKS`, in validation and in the JSON schema."""
