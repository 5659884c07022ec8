"""A text and an image encoder of transformers side by side, with projections into a joint space."""

from __future__ import annotations

from mergenet_core.architectures.declare import unpaired
from mergenet_core.architectures.families.bert import BERT, POOLED, ROBERTA
from mergenet_core.architectures.families.bert import PROJECTION as TEXT
from mergenet_core.architectures.families.vit import PROJECTION as IMAGES
from mergenet_core.architectures.families.vit import VIT
from mergenet_core.architectures.schema import TowerSpec, TwoTowerFamily
from mergenet_core.spec.json_values import get_int

VISION_TEXT_DUAL_ENCODER = TwoTowerFamily(
    model_type="vision-text-dual-encoder",
    text=TowerSpec(
        config_key="text_config", prefix="text_model.", families=(BERT, ROBERTA), projection=TEXT, options=POOLED
    ),
    image=TowerSpec(
        config_key="vision_config", prefix="vision_model.", families=(VIT,), projection=IMAGES, options=POOLED
    ),
    joint=lambda config: get_int(config, "projection_dim", default=512),
    extra=unpaired("logit_scale"),
    tasks=("image-text-retrieval",),
)
