"""Networks with weights that tell their parts apart: random from a seed, or by the golden files' rule."""

import zlib
from typing import TypeVar

import numpy as np
import torch
from torch import nn

N = TypeVar("N", bound=nn.Module)


@torch.no_grad()
def randomized(model: N, seed: int = 0) -> N:
    """Fill parameters and running statistics in place from ``seed``; input normalisation and counters stay."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.startswith("normalize.") or name.endswith("num_batches_tracked"):
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() >= 2:
            tensor.copy_(noise * (2 / tensor[0].numel()) ** 0.5)
        elif name.endswith("running_var"):
            tensor.copy_(1 + 0.2 * noise.abs())
        else:
            tensor.copy_((1.0 if name.endswith("weight") else 0.0) + 0.1 * noise)
    return model


def fill_deterministically(model: N) -> N:
    """Fill every parameter and buffer by the rule of the golden files' README, from the tensor's name alone."""
    named = [*model.named_parameters(), *model.named_buffers()]
    with torch.no_grad():
        for name, tensor in named:
            if name.endswith("num_batches_tracked"):
                tensor.zero_()
                continue
            if name.startswith("normalize."):
                continue
            random = np.random.RandomState(zlib.crc32(name.encode()))
            z = random.standard_normal(tuple(tensor.shape)).astype(np.float32)
            if name.endswith("running_mean"):
                value = 0.1 * z
            elif name.endswith("running_var"):
                value = 1 + 0.2 * np.abs(z)
            elif tensor.dim() >= 2:
                value = z * np.sqrt(2 / tensor[0].numel())
            elif name.endswith("weight"):
                value = 1 + 0.1 * z
            else:
                value = 0.1 * z
            tensor.copy_(torch.from_numpy(np.asarray(value, dtype=np.float32)))
    return model
