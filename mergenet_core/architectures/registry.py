"""The model families that are known here.

To add one, declare it in a file of its own in `families/` (`llama.py` is an example) and list it in `FAMILIES`.
Then add its configs to `tests/architectures/test_families.py`, which compares it with the real model for each task.
"""

from __future__ import annotations

from collections.abc import Iterator

from mergenet_core.architectures.axes import Kind
from mergenet_core.architectures.families.bert import BERT, ELECTRA, ROBERTA
from mergenet_core.architectures.families.clip import CLIP, CLIP_TEXT, CLIP_VISION
from mergenet_core.architectures.families.distilbert import DISTILBERT
from mergenet_core.architectures.families.gpt2 import GPT2
from mergenet_core.architectures.families.llama import LLAMA, MISTRAL, QWEN2
from mergenet_core.architectures.families.mobilenet_v2 import MOBILENET_V2
from mergenet_core.architectures.families.phi3 import PHI3
from mergenet_core.architectures.families.plain_networks import MERGENET_CNN, MERGENET_MLP
from mergenet_core.architectures.families.resnet import RESNET
from mergenet_core.architectures.families.vilt import VILT
from mergenet_core.architectures.families.vision_text_dual_encoder import VISION_TEXT_DUAL_ENCODER
from mergenet_core.architectures.families.vit import OLDER_VIT, VIT
from mergenet_core.architectures.schema import Family, TwoTowerFamily, WeightSpec

FAMILIES = (
    BERT,
    ROBERTA,
    ELECTRA,
    DISTILBERT,
    CLIP_TEXT,
    GPT2,
    LLAMA,
    MISTRAL,
    QWEN2,
    PHI3,
    VIT,
    OLDER_VIT,
    CLIP_VISION,
    VILT,
    RESNET,
    MOBILENET_V2,
    MERGENET_MLP,
    MERGENET_CNN,
)
TWO_TOWER_FAMILIES = (CLIP, VISION_TEXT_DUAL_ENCODER)

_OTHER_LABEL_HEADS = ("cls_head.",)
"""Heads over labels in families that are not declared here."""
_PLURALS: dict[Kind, str] = {
    "encoder": "encoders", "decoder": "decoders", "vit": "vision transformers", "fusion": "fusion encoders",
    "mlp": "MLPs", "cnn": "CNNs",
}  # fmt: skip


def find_family(model_type: str) -> Family | None:
    """The family of which models of this type are."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)


def find_two_tower_family(model_type: str) -> TwoTowerFamily | None:
    """The family of models of two towers of this type."""
    return next((family for family in TWO_TOWER_FAMILIES if model_type == family.model_type), None)


def known_families() -> str:
    """The families as a user reads them, by what they are."""
    named = {
        plural: ", ".join(kind for family in FAMILIES if family.kind == of for kind in family.model_types)
        for of, plural in _PLURALS.items()
    }
    towers = ", ".join(family.model_type for family in TWO_TOWER_FAMILIES)
    return f"{', '.join(f'{plural} ({names})' for plural, names in named.items())}, and models of two towers ({towers})"


def is_label_head(name: str) -> bool:
    """Whether a weight of this name belongs to a head over labels, or over the ends of a span."""
    return name.startswith(_LABEL_HEADS)


def _heads() -> Iterator[WeightSpec]:
    for family in FAMILIES:
        for head in family.heads.values():
            yield from head.weights


_LABEL_HEADS = (
    *sorted({f"{spec.name.partition('.')[0]}." for spec in _heads() if spec.out in ("labels", "spans")}),
    *_OTHER_LABEL_HEADS,
)
