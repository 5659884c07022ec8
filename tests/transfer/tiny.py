"""Real models, small enough to build in a test, and their pairing."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

from mergenet_core.model_files.model_info import ModelInfo, Vocabulary
from mergenet_core.models.builtin import MergeNetCnn, MergeNetCnnConfig, MergeNetMlp, MergeNetMlpConfig
from mergenet_core.pairing.pair import Pairing, pair
from mergenet_core.spec.job import TransferSpec
from mergenet_core.transfer.axis_maps import RowUpdate
from mergenet_core.transfer.cycle import Transfer, TransferSource
from mergenet_core.transfer.methods.method import MethodContext
from mergenet_core.transfer.shards import ReplicatedShard, TensorShard
from mergenet_core.transfer.views import WeightView, view_of

LABELS = ("ant", "bee", "cat")
WORDS = Vocabulary("words")


def bert(
    width: int = 16, layers: int = 2, heads: int = 2, inner: int = 24, seed: int = 0, scale: float = 1.0
) -> nn.Module:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=50, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=inner,
        max_position_embeddings=20, num_labels=3, initializer_range=0.1,
    )  # fmt: skip
    return _randomised(BertForSequenceClassification(config), seed)


def vit(width: int = 12, layers: int = 2, heads: int = 2, inner: int = 20, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    config = ViTConfig(
        image_size=4, patch_size=2, num_channels=1, hidden_size=width, num_hidden_layers=layers, num_labels=3,
        num_attention_heads=heads, intermediate_size=inner, initializer_range=0.1,
    )  # fmt: skip
    return _randomised(ViTForImageClassification(config), seed)


def mlp(sizes: tuple[int, ...] = (9, 7), seed: int = 0, labels: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return _randomised(
        MergeNetMlp(MergeNetMlpConfig(image_size=4, num_channels=1, hidden_sizes=sizes, num_labels=labels)), seed
    )


def cnn(channels: tuple[int, ...] = (6, 8, 7), seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return _randomised(MergeNetCnn(MergeNetCnnConfig(num_channels=1, channels=channels, num_labels=3)), seed)


def facts(model: nn.Module, labels: tuple[str, ...] = LABELS, vocabulary: Vocabulary | None = WORDS) -> ModelInfo:
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return ModelInfo(model.config.to_dict(), shapes, vocabulary, labels)  # type: ignore[union-attr, operator]


def paired(source: nn.Module, target: nn.Module, spec: TransferSpec) -> Pairing:
    return pair(facts(source), facts(target), spec)


def transfer(source: nn.Module, target: nn.Module, spec: TransferSpec, steps: int = 40, seed: int = 3) -> Transfer:
    return Transfer(
        TransferSource(source.state_dict()), shards(target), paired(source, target, spec), spec, steps=steps, seed=seed
    )


def context(source: nn.Module, target: nn.Module, spec: TransferSpec, seed: int = 0) -> MethodContext:
    return MethodContext(source.state_dict(), shards(target), paired(source, target, spec), spec, seed)


def shards(model: nn.Module) -> dict[str, TensorShard]:
    return {name: ReplicatedShard(W) for name, W in model.state_dict(keep_vars=True).items()}


def matrix(view: WeightView) -> Tensor:
    """The matrix of a view whose weight is on this process."""
    return view.shard.local().flat.view(view.shape)


def applied(updates: Iterable[RowUpdate], target: nn.Module) -> dict[str, Tensor]:
    """Copies of the target's weights that updates change, after the updates."""
    copies = {name: W.clone() for name, W in target.state_dict().items()}
    changed = {}
    for update in updates:
        view_of(copies[update.pair.target], update.pair.form).write_rows_(update.rows, update.values)
        changed[update.pair.target] = copies[update.pair.target]
    return changed


def batch(model: nn.Module, seed: int = 0, size: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if isinstance(model, BertForSequenceClassification):
        return {"input_ids": torch.randint(1, 50, (size, 12), generator=generator)}
    return {"pixel_values": torch.randn(size, 1, 4, 4, generator=generator)}


def logits(model: nn.Module) -> Tensor:
    model.eval()
    with torch.no_grad():
        result: Tensor = model(**batch(model)).logits
    return result


def _randomised(model: nn.Module, seed: int) -> nn.Module:
    """Change the initial zeros and ones of biases, norms and statistics, so that a test sees where they end up."""
    generator = torch.Generator().manual_seed(11 + seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.ndim == 1:
                tensor.add_(0.2 * torch.rand(tensor.shape, generator=generator))
    return model
