import pytest
import torch
import transformers as tf
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
)

import mergenet_core.models  # noqa: F401  (registers the built-in networks)
from mergenet_core.architectures.shapes import shapes_from_config

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


TEXT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
CLASSES, TOKENS = "text-classification", "causal-language-modelling"


@pytest.mark.parametrize(
    ("config", "task", "model"),
    [
        ({"model_type": "distilbert", "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}, CLASSES,
         tf.DistilBertForSequenceClassification),
        ({"model_type": "distilbert", "dim": 16, "n_layers": 1, "n_heads": 2}, "question-answering",
         tf.DistilBertForQuestionAnswering),
        ({"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 40}, CLASSES,
         tf.GPT2ForSequenceClassification),
        ({"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 4, "n_inner": 20}, TOKENS, tf.GPT2LMHeadModel),
        ({"model_type": "llama", **TEXT, "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}, CLASSES,
         tf.LlamaForSequenceClassification),
        ({"model_type": "llama", **TEXT}, TOKENS, tf.LlamaForCausalLM),
        ({"model_type": "llama", **TEXT, "tie_word_embeddings": True}, TOKENS, tf.LlamaForCausalLM),
        ({"model_type": "mistral", **TEXT, "num_attention_heads": 8, "head_dim": 4}, TOKENS, tf.MistralForCausalLM),
        ({"model_type": "qwen2", **TEXT, "num_key_value_heads": 1}, CLASSES, tf.Qwen2ForSequenceClassification),
        ({"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
          "intermediate_size": 24, "image_size": 8, "patch_size": 4, "num_labels": 3}, "image-classification",
         tf.ViTForImageClassification),
    ],
)  # fmt: skip
def test_the_layout_of_a_transformer_has_the_tasks_head(config, task, model):
    made = model(AutoConfig.for_model(**config))
    shapes = {name: tuple(W.shape) for name, W in made.state_dict().items()}
    if getattr(made.config, "tie_word_embeddings", False):
        shapes.pop("lm_head.weight", None)
    assert shapes_from_config(config, task) == shapes


BLOCK = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
WORDS, SIGHTS = {"vocab_size": 40, "max_position_embeddings": 9}, {"image_size": 12, "patch_size": 4, "num_channels": 1}


@pytest.mark.parametrize(
    ("config", "task", "auto"),
    [
        ({"model_type": "vilt", **BLOCK, **WORDS, **SIGHTS, "num_labels": 5, "qkv_bias": False},
         "visual-question-answering", tf.AutoModelForVisualQuestionAnswering),
        ({"model_type": "vilt", "num_hidden_layers": 1}, "visual-question-answering",
         tf.AutoModelForVisualQuestionAnswering),
        ({"model_type": "clip", "text_config": BLOCK | WORDS, "vision_config": BLOCK | SIGHTS, "projection_dim": 6},
         "image-text-retrieval", tf.AutoModel),
        ({"model_type": "clip"}, "image-text-retrieval", tf.AutoModel),
        ({"model_type": "vision-text-dual-encoder", "text_config": {"model_type": "bert", **BLOCK, **WORDS},
          "vision_config": {"model_type": "vit", **BLOCK, **SIGHTS}}, "image-text-retrieval", tf.AutoModel),
    ],
)  # fmt: skip
def test_the_layout_of_a_model_over_images_and_texts(config, task, auto):
    with torch.device("meta"):
        made = auto.from_config(AutoConfig.for_model(**config))
    assert shapes_from_config(config, task) == {name: tuple(W.shape) for name, W in made.state_dict().items()}


def test_defaults_are_those_of_the_library():
    for kind in ("distilbert", "gpt2", "llama", "mistral", "qwen2"):
        config = AutoConfig.for_model(kind)
        config_without_default = {name: value for name, value in config.to_dict().items() if name != "head_dim"}
        assert shapes_from_config({"model_type": kind}, CLASSES) == shapes_from_config(config_without_default, CLASSES)


def test_a_family_or_head_not_known_has_no_layout():
    assert shapes_from_config({"model_type": "t5"}) is None
    assert shapes_from_config({"model_type": "vit"}, CLASSES) is None
