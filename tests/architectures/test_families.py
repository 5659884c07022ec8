"""Each declared family is held against the real model, built without memory on the meta device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoConfig

import mergenet_core.models  # noqa: F401  (registers the built-in networks)
from mergenet_core.architectures.read_structure import read_structure
from mergenet_core.architectures.registry import FAMILIES, TWO_TOWER_FAMILIES, find_family, find_two_tower_family
from mergenet_core.architectures.schema import Family, WeightSpec
from mergenet_core.architectures.shapes import shapes_from_config
from mergenet_core.architectures.structure import ModelStructure
from mergenet_core.spec.task_info import TASKS

Config = Mapping[str, Any]
BLOCK = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 20}
TEXT = BLOCK | {"vocab_size": 40, "max_position_embeddings": 9}
IMAGE = BLOCK | {"image_size": 12, "patch_size": 4, "num_channels": 1}
UNTIED, TIED = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}

CONFIGS: dict[str, list[Config]] = {
    "bert": [{}, TEXT, TEXT | UNTIED | {"type_vocab_size": 3, "num_labels": 5}],
    "roberta": [{}, TEXT, TEXT | UNTIED | {"type_vocab_size": 1, "num_labels": 5}],
    "electra": [{}, TEXT | {"embedding_size": 24}, TEXT | UNTIED | {"embedding_size": 8, "num_labels": 5}],
    "distilbert": [
        {},
        {"dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 20, "vocab_size": 40, "max_position_embeddings": 9},
        {"dim": 24, "n_layers": 1, "n_heads": 3} | UNTIED,
    ],
    "gpt2": [
        {},
        {"n_embd": 24, "n_layer": 2, "n_head": 3, "vocab_size": 40, "n_positions": 9},
        {"n_embd": 24, "n_layer": 1, "n_head": 3, "n_inner": 20, "num_labels": 5} | UNTIED,
        {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "max_position_embeddings": 9},
    ],
    "llama": [
        {},
        TEXT | {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
        TEXT | TIED | {"head_dim": 10, "num_labels": 5},
    ],
    "mistral": [{}, TEXT | {"num_key_value_heads": 2, "head_dim": 8}, TEXT | TIED | {"num_key_value_heads": 1}],
    "qwen2": [{}, TEXT | {"num_key_value_heads": 1}, TEXT | TIED | {"num_key_value_heads": 4}],
    "phi3": [
        {"num_hidden_layers": 1, "pad_token_id": 0},
        TEXT | {"num_key_value_heads": 2, "pad_token_id": 0},
        TEXT | TIED | {"num_key_value_heads": 1, "pad_token_id": 0, "num_labels": 5},
    ],
    "vit": [
        {},
        IMAGE | {"num_labels": 5},
        IMAGE | {"qkv_bias": False, "image_size": [8, 12], "patch_size": [4, 2]},
    ],
    "vilt": [{"num_hidden_layers": 1}, TEXT | IMAGE | {"num_labels": 5, "qkv_bias": False}],
    "clip": [{}, {"text_config": TEXT, "vision_config": IMAGE, "projection_dim": 6}],
    "vision-text-dual-encoder": [
        {"text_config": {"model_type": "bert", **TEXT}, "vision_config": {"model_type": "vit", **IMAGE}},
        {
            "text_config": {"model_type": "roberta", **TEXT},
            "vision_config": {"model_type": "vit", **IMAGE, "qkv_bias": False},
            "projection_dim": 6,
        },
    ],
    "resnet": [
        {},
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 1], "layer_type": "basic", "num_labels": 5},
        {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2], "downsample_in_first_stage": True},
    ],
    "mergenet-resnet": [{}, {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 3], "num_channels": 1}],
    "mobilenet_v2": [
        {},
        {"depth_multiplier": 0.25, "finegrained_output": False},
        {"depth_multiplier": 1.4, "expand_ratio": 3, "depth_divisible_by": 4, "min_depth": 12},
        {"first_layer_is_expansion": False, "num_labels": 5},
    ],
    "mergenet-mobilenet-v2": [{}, {"depth_multiplier": 0.5, "num_channels": 1}],
    "mergenet-mlp": [{}, {"image_size": 5, "num_channels": 3, "hidden_sizes": [7, 6, 5], "num_labels": 4}],
    "mergenet-cnn": [{}, {"num_channels": 3, "channels": [4, 5, 6], "kernel_size": 5, "num_labels": 4}],
}  # fmt: skip
"""By model type; the empty config is the library's defaults."""


def cases() -> Iterator[Any]:
    for kind, configs in CONFIGS.items():
        family, towers = find_family(kind), find_two_tower_family(kind)
        tasks = tuple(family.heads) if family is not None else towers.tasks if towers is not None else ()
        for task in tasks:
            for number, config in enumerate(configs):
                used = {"model_type": kind} | dict(config)
                if task == "causal-language-modelling" and "masked-language-modelling" in tasks:
                    used["is_decoder"] = True
                if task == "question-answering":  # an answer's start and end are its labels
                    used.pop("num_labels", None)
                yield pytest.param(used, task, id=f"{kind}-{task}-{number}")


def real(config: Config, task: str) -> nn.Module:
    auto = getattr(transformers, TASKS[task].auto_class)
    with torch.device("meta"):
        model: nn.Module = auto.from_config(AutoConfig.for_model(**config))
    return model


def own_entries(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The state dict's names and shapes, each tied weight once."""
    once = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items() if name in once}


def all_entries(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def structures(model: nn.Module) -> tuple[ModelStructure, ...]:
    return read_structure(all_entries(model), model.config.to_dict())  # type: ignore[operator, union-attr]


def test_every_family_that_is_built_from_a_config_is_held_against_its_model() -> None:
    built = {kind for family in FAMILIES if family.heads for kind in family.model_types}
    assert set(CONFIGS) == built | {family.model_type for family in TWO_TOWER_FAMILIES}


@pytest.mark.parametrize(("config", "task"), list(cases()))
def test_names_and_shapes_are_those_of_the_real_model(config: Config, task: str) -> None:
    assert shapes_from_config(config, task) == own_entries(real(config, task))


@pytest.mark.parametrize(("config", "task"), list(cases()))
def test_each_axis_has_the_size_that_the_config_gives_it(config: Config, task: str) -> None:
    model = real(config, task)
    for structure in structures(model):
        sizes = structure.sizes()
        joint = {"joint": sizes["joint"]} if "joint" in sizes else {}  # the size of both towers together
        known = {axis: structure.dimensions.size(axis) for axis in sizes if axis not in joint}
        assert known | joint == sizes
        assert structure.layers == structure.dimensions.layers


@pytest.mark.parametrize(("config", "task"), list(cases()))
def test_reading_gives_each_weight_the_role_that_its_family_declares(config: Config, task: str) -> None:
    model = real(config, task)
    found = structures(model)
    read = {
        (weight.stored.name if weight.stored else weight.name, weight.role, weight.layer)
        for structure in found
        for weight in structure.weights
    }
    tied = {name for structure in found for name in structure.tied}
    assert read == {entry for entry in declared(config, task) if entry[0] not in tied}
    own, everything = own_entries(model), all_entries(model)
    assert everything.keys() - own.keys() == tied
    unpaired = {name for name in own if name not in {entry[0] for entry in read}}
    assert {name.rsplit(".", 1)[-1] for name in unpaired} <= {"num_batches_tracked", "logit_scale", "bias"}


def declared(config: Config, task: str) -> set[tuple[str, str, int | None]]:
    """Name, role and layer of every weight of the model that takes part in pairing."""
    kind = config["model_type"]
    family, two = find_family(kind), find_two_tower_family(kind)
    if family is not None:
        head = family.heads[task]
        prefix = family.prefix if head.prefix is None else head.prefix
        found = [*body(family, prefix, config), *head.weights]
    else:
        assert two is not None
        found = []
        for tower in two.towers:
            own = config.get(tower.config_key) or {}
            kind = own.get("model_type", tower.model_types[0])
            member = next(one for one in tower.families if kind in one.model_types)
            found += [*body(member, tower.prefix, own), *tower.projection]
    names = shapes_from_config(config, task) or {}
    return {(spec.name, spec.role, spec.layer) for spec in found if spec.role is not None and spec.name in names}


def body(family: Family, prefix: str, config: Config) -> Iterator[WeightSpec]:
    for spec in family.body.of_config(config, family.dimensions(config)):
        yield replace(spec, name=f"{prefix}{spec.name}")


ATTENDING = [
    kind for kind in CONFIGS if (family := find_family(kind)) is not None and family.kind not in ("mlp", "cnn")
]


@pytest.mark.parametrize("kind", ATTENDING)
def test_heads_width_and_dropout_of_a_family_are_those_of_the_library(kind: str) -> None:
    family = find_family(kind)
    assert family is not None
    for config in CONFIGS[kind]:
        settings = AutoConfig.for_model(kind, **config)
        found = family.dimensions({"model_type": kind, **config})
        assert found.heads == settings.num_attention_heads
        assert found.key_value_heads == (getattr(settings, "num_key_value_heads", None) or found.heads)
        assert (found.width, found.layers) == (settings.hidden_size, settings.num_hidden_layers)
        names = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")
        assert found.attention_dropout == next(getattr(settings, name) for name in names if hasattr(settings, name))


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if find_family(kind) is not None])
def test_a_config_that_spells_the_defaults_out_describes_the_same_model(kind: str) -> None:
    family = find_family(kind)
    assert family is not None
    spelled = AutoConfig.for_model(kind).to_dict()
    for task in family.heads:
        assert shapes_from_config({"model_type": kind}, task) == shapes_from_config(spelled, task)


def test_a_size_of_the_wrong_type_is_named() -> None:
    with pytest.raises(ValueError, match="hidden_size is 'wide'; it must be a whole number"):
        shapes_from_config({"model_type": "bert", "hidden_size": "wide"})
    with pytest.raises(ValueError, match="hidden_sizes is 5; it must be a list of whole numbers"):
        shapes_from_config({"model_type": "mergenet-mlp", "hidden_sizes": 5})
    with pytest.raises(ValueError, match=r"patch_size is \(4,\); it must be one whole number, or height and width"):
        shapes_from_config({"model_type": "vit", "patch_size": [4]})
    with pytest.raises(ValueError, match="the number of attention heads or a patch's side is 0; it must be positive"):
        shapes_from_config({"model_type": "llama", "num_attention_heads": 0})


def test_other_types_of_the_same_names_are_read_unless_their_sizes_mean_something_else() -> None:
    shapes = shapes_from_config({"model_type": "bert", **TEXT})
    assert shapes is not None
    assert len(read_structure(shapes, {"model_type": "camembert", **TEXT})) == 1
    assert read_structure(shapes, {"model_type": "other", "num_attention_heads": [2, 4]}) == ()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_can_learn_only_what_its_library_can(family: Family) -> None:
    for task in family.heads:
        library = getattr(transformers, TASKS[task].auto_class)._model_mapping
        assert set(family.model_types) <= {config.model_type for config in library}


def test_the_weights_that_phi3_fuses_are_read_as_slices_of_their_own() -> None:
    config = {"model_type": "phi3", **TEXT, "num_key_value_heads": 2, "pad_token_id": 0}
    model = real(config, "causal-language-modelling")
    (structure,) = structures(model)
    slices = {
        (weight.role, weight.stored.rows)
        for weight in structure.weights
        if weight.layer == 1 and weight.stored is not None
    }
    assert slices == {
        ("attention.query.weight", (0, 24)), ("attention.key.weight", (24, 36)), ("attention.value.weight", (36, 48)),
        ("ffn.gate.weight", (0, 20)), ("ffn.up.weight", (20, 40)),
    }  # fmt: skip
    parameters = dict(model.named_parameters())
    assert tuple(parameters["model.layers.1.self_attn.qkv_proj.weight"].shape) == (48, 24)
    assert tuple(parameters["model.layers.1.mlp.gate_up_proj.weight"].shape) == (40, 24)
    llama = real({"model_type": "llama", **TEXT, "num_key_value_heads": 2}, "causal-language-modelling")
    (same,) = structures(llama)
    assert {(w.role, w.layer, w.out, w.inp, w.shape) for w in structure.weights} == {
        (w.role, w.layer, w.out, w.inp, w.shape) for w in same.weights
    }
