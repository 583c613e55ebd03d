"""The strategy network of ASTrA: a ResNet with one linear head per knob of the attack."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from astra_env.models.layers import build, require_choice, require_positive
from astra_env.models.resnet import BasicBlock, ResNetTrunk

OFFICIAL_HEADS = ("Attack_epsilon", "Attack_iters", "Attack_step_size")


class StrategyNetwork(ResNetTrunk):
    """Views -> one tensor of logits per knob; with three knobs its state dict is the official checkpoint format."""

    def __init__(self, grid_sizes: tuple[int, ...], width: int, blocks: tuple[int, ...], norm: str) -> None:
        super().__init__(BasicBlock, width, blocks, norm=norm)
        self.grid_sizes = grid_sizes
        official = len(grid_sizes) == len(OFFICIAL_HEADS)
        self._heads = OFFICIAL_HEADS if official else tuple(f"Attack_{knob}" for knob in range(len(grid_sizes)))
        for name, size in zip(self._heads, grid_sizes, strict=True):
            self.add_module(name, nn.Linear(self.embed_dim, size))

    @property
    def heads(self) -> tuple[nn.Linear, ...]:
        """The linear heads in the order of ``grid_sizes``."""
        return tuple(getattr(self, name) for name in self._heads)

    def forward(self, views: Tensor) -> tuple[Tensor, ...]:
        """Views (N, 3, H, W) in [0, 1] -> logits (N, size) for every grid: epsilon, steps, step_size."""
        features = self.embed(views)
        return tuple(head(features) for head in self.heads)


def strategy_resnet18(
    *,
    grid_sizes: Sequence[int] = (13, 12, 5),
    width: int = 64,
    blocks: tuple[int, ...] = (2, 2, 2, 2),
    zero_init_heads: bool = False,
    norm: str = "batch",
    generator: torch.Generator | None = None,
) -> StrategyNetwork:
    """Return ASTrA's strategy network: CIFAR ResNet-18 on raw [0, 1] views (arXiv 2501.02296).

    Args:
        grid_sizes: number of choices per knob, in the order epsilon, steps, step_size; one or more knobs.
        width: channels of the first stage.
        blocks: residual blocks per stage.
        zero_init_heads: start from exactly uniform choices instead of PyTorch's default heads.
        norm: "batch" (official) or "group", which decides alike in training and evaluation mode.
        generator: source of the initial weights, on the device where the network shall live.

    Raises InputError for an empty grid or a value outside these choices.
    """
    require_positive("grid_sizes", *grid_sizes)
    require_positive("width", width)
    require_positive("blocks", *blocks)
    require_choice("norm", norm, ("batch", "group"))
    network = build(lambda: StrategyNetwork(tuple(grid_sizes), width, tuple(blocks), norm), generator)
    if zero_init_heads:
        for head in network.heads:
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
    return network
