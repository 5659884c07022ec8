"""Trivial baselines: what is reached without a deep model, from the same labelled examples as the arms of a seed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import chain

import torch

from mergenet_core.baselines.logistic import Floats, accuracy_on_test, labelled, standardise
from mergenet_core.baselines.words import tf_idf
from mergenet_core.tasks.image_classification import PixelExamples
from mergenet_core.tasks.task import Task
from mergenet_core.tasks.text_classification import TokenExamples
from mergenet_core.tasks.visual_question_answering.task import ImageQuestions
from mergenet_core.tasks.visual_question_answering.vqa import Question

TRAIN_MAX = 20_000
"""The most training examples that a regression is fitted to; with more the baseline is left out."""
SIDE_MAX = 32
"""The largest height and width at which pixels are fitted; larger images are averaged down to it."""


def input_baseline(task: Task) -> dict[str, float]:
    """The test metric of the task's trivial baseline, by its name; empty where the task has none.

    `tf-idf`: logistic regression on the words that the target reads of a text; `tf-idf-whole`: on all words, where the
    target cuts texts; `pixels`: the same on an image's pixels; `question`: the most
    frequent answer in training to the same question, whatever the image shows.
    """
    if isinstance(task.train, ImageQuestions) and isinstance(task.test, ImageQuestions):
        return {"question": question_alone(task.train.questions, task.test.questions)}
    if len(task.train) > TRAIN_MAX:
        return {}
    splits = (task.train, task.validation, task.test)
    texts = [split for split in splits if isinstance(split, TokenExamples)]
    if len(texts) == len(splits):
        words = {"tf-idf": [split.read for split in texts], "tf-idf-whole": [split.texts for split in texts]}
        if words["tf-idf"] == words["tf-idf-whole"]:
            del words["tf-idf-whole"]
        return {
            name: accuracy_on_test(labelled(tf_idf(*of_splits), texts), len(task.labels))
            for name, of_splits in words.items()
        }
    images = [split for split in splits if isinstance(split, PixelExamples)]
    if len(images) == len(splits):
        pixels = standardise([_pixels(split) for split in images])
        return {"pixels": accuracy_on_test(labelled(pixels, images), len(task.labels))}
    return {}


def question_alone(train: Sequence[Question], test: Sequence[Question]) -> float:
    """VQA's accuracy of the most frequent answer to a question's text; for a new text, of the most frequent answer."""
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for question in train:
        answers[_text(question)][question.answers.most_common] += 1
    usual = Counter(chain.from_iterable(counts.elements() for counts in answers.values()))
    chosen = [answers.get(_text(question), usual).most_common(1)[0][0] for question in test]
    return sum(one.answers.score(answer) for one, answer in zip(test, chosen, strict=True)) / len(test)


def _text(question: Question) -> str:
    return " ".join(question.text.lower().split())


def _pixels(split: PixelExamples) -> Floats:
    """Pixels, those of a large image averaged. Shapes: (n, c · h · w)."""
    found = []
    for index_b in torch.split(torch.arange(len(split)), 512):
        X_bchw = split.batch(index_b)["pixel_values"]
        found.append(torch.nn.functional.adaptive_avg_pool2d(X_bchw, min(SIDE_MAX, X_bchw.shape[-1])).flatten(1))
    X_nd: Floats = torch.cat(found).numpy()
    return X_nd
