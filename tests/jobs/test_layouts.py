import pytest
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
)

import mergenet_core.models  # noqa: F401  (registers the built-in networks)
from mergenet_core.jobs.layouts import shapes_from_config

BERT = {"model_type": "bert", "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24}
BERT |= {"num_attention_heads": 2}


@pytest.mark.parametrize(
    "config",
    [
        BERT,
        BERT | {"num_labels": 5, "max_position_embeddings": 9, "type_vocab_size": 1},
        {"model_type": "mergenet-mlp", "image_size": 5, "num_channels": 3, "hidden_sizes": [7, 6], "num_labels": 4},
        {"model_type": "mergenet-mlp"},
        {"model_type": "mergenet-cnn", "num_channels": 3, "channels": [4, 5, 6], "kernel_size": 5, "num_labels": 4},
        {"model_type": "mergenet-cnn"},
    ],
    ids=lambda config: config["model_type"],
)
def test_the_layout_is_that_of_the_real_model(config):
    auto = AutoModelForSequenceClassification if config["model_type"] == "bert" else AutoModelForImageClassification
    model = auto.from_config(AutoConfig.for_model(**config))
    assert shapes_from_config(config) == {name: tuple(W.shape) for name, W in model.state_dict().items()}


@pytest.mark.parametrize(
    ("task", "auto", "change"),
    [
        ("question-answering", AutoModelForQuestionAnswering, {}),
        ("masked-language-modelling", AutoModelForMaskedLM, {}),
        ("masked-language-modelling", AutoModelForMaskedLM, {"tie_word_embeddings": False}),
        ("causal-language-modelling", AutoModelForCausalLM, {"is_decoder": True}),
        ("text-classification", AutoModelForSequenceClassification, {}),
    ],
)
def test_the_head_is_that_of_the_task(task, auto, change):
    model = auto.from_config(AutoConfig.for_model(**BERT, **change))
    assert shapes_from_config(BERT | change, task) == {name: tuple(W.shape) for name, W in model.named_parameters()}


def test_a_family_not_known_has_no_layout():
    assert shapes_from_config({"model_type": "gpt2"}) is None
