"""A target network's branch with its BatchNorms folded into the weights: the same function in eval mode, cheaper.

For attacks, which run the frozen network many times a step: no normalisation layers, no casts of weights, gradients
with respect to the images only.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_env.errors import InputError
from astra_env.models.layers import BRANCHES, BranchNorm, global_pool, pool_stem
from astra_env.models.target import BranchBlock, TargetNetwork


@dataclass(frozen=True)
class _Convolution:
    weight: Tensor
    bias: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str

    def __call__(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)  # type: ignore[arg-type]


class FoldedTarget:
    """Maps views (N, 3, H, W) in [0, 1] to the projected features (N, D) of one branch in eval mode.

    Holds a snapshot of the weights: make a new one after every update.

    Args:
        target: a target network with BatchNorm ("branch" or "single").
        branch: "clean" or "adv".
        dtype: of weights and activations; the features come back in it.

    Raises:
        InputError: for GroupNorm, whose statistics depend on the image and cannot be folded.
    """

    @torch.no_grad()
    def __init__(self, target: TargetNetwork, branch: str, dtype: torch.dtype = torch.float32) -> None:
        if target.norm == "group":
            raise InputError("learner.fold_batchnorm: needs target.norm branch or single, got 'group'")
        self._index = BRANCHES.index(branch) if target.norm == "branch" else 0
        self._dtype = dtype
        self._normalize, self._stem = target.normalize, target.stem
        self._first = self._fold(target.conv1, target.bn1)
        layers = [getattr(target, name) for name in target._layers]
        self._blocks = [self._fold_block(block) for layer in layers for block in layer]
        head = target.fc
        self._head = [
            self._fold_linear(linear, norm)
            for linear, norm in ((head.fc1, head.bn1), (head.fc2, head.bn2), (head.fc3, head.bn3))
        ]

    def __call__(self, views: Tensor) -> Tensor:
        """Return the features of ``views``."""
        x = F.relu(self._first(self._normalize(views).to(self._dtype)), inplace=True)
        x = pool_stem(x, self._stem)
        for first, second, shortcut in self._blocks:
            skip = x if shortcut is None else shortcut(x)
            x = F.relu(second(F.relu(first(x), inplace=True)) + skip, inplace=True)
        x = global_pool(x)
        for weight, bias in self._head[:-1]:
            x = F.relu(F.linear(x, weight, bias), inplace=True)
        return F.linear(x, *self._head[-1])

    def _fold_block(self, block: BranchBlock) -> tuple[_Convolution, _Convolution, _Convolution | None]:
        shortcut = None if block.downsample is None else self._fold(block.downsample.conv, block.downsample.bn)
        return self._fold(block.conv1, block.bn1), self._fold(block.conv2, block.bn2), shortcut

    def _fold(self, conv: nn.Conv2d, norm: BranchNorm) -> _Convolution:
        scale, shift = self._affine(norm)
        weight = (conv.weight * scale.view(-1, 1, 1, 1)).to(self._dtype)
        if conv.weight.is_contiguous(memory_format=torch.channels_last):
            weight = weight.contiguous(memory_format=torch.channels_last)
        return _Convolution(weight, shift.to(self._dtype), conv.stride, conv.padding)

    def _fold_linear(self, linear: nn.Linear, norm: BranchNorm) -> tuple[Tensor, Tensor]:
        scale, shift = self._affine(norm)
        bias = shift if linear.bias is None else shift + linear.bias * scale
        return (linear.weight * scale[:, None]).to(self._dtype), bias.to(self._dtype)

    def _affine(self, norm: BranchNorm) -> tuple[Tensor, Tensor]:
        inner: Any = norm.bn_list[self._index]
        scale = inner.weight * (inner.running_var + inner.eps).rsqrt()
        return scale, inner.bias - inner.running_mean * scale
