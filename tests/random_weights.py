"""Networks whose every weight and statistic is random, so that no two parts of them look alike by chance."""

from typing import TypeVar

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
