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


@torch.no_grad()
def fill_by_init_rule(model: N) -> N:
    """Fill a network by the "init rule" of the golden files' README: norms as PyTorch makes them, biases of zero.

    The official values were products of float32 numbers; a network in float64 holds exactly those.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_parameters()
    of_norms = {parameter for norm in norms for parameter in norm.parameters()}
    for name, parameter in model.named_parameters():
        if parameter in of_norms:
            continue
        z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(parameter.shape))
        scale = np.sqrt(2 / parameter[0].numel()) if parameter.dim() >= 2 else 0.1
        parameter.copy_(torch.from_numpy(z.astype(np.float32) * np.float32(scale)))
    return model
