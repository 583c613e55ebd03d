"""BatchNorm over several ranks: each rank's own statistics, or those of the whole batch."""

from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from astra_env.distributed.world import World
from astra_env.errors import ConfigError

Network = TypeVar("Network", bound=nn.Module)


def with_shared_statistics(module: Network, device: torch.device, world: World, field: str) -> Network:
    """Return ``module`` with ``torch.nn.SyncBatchNorm`` for BatchNorm, when there is more than one rank.

    Raises ConfigError naming ``field`` on a CPU, which SyncBatchNorm cannot use.
    """
    if device.type != "cuda":
        raise ConfigError(
            f"{field}: torch.nn.SyncBatchNorm needs CUDA, the device is {device.type}; set it to false (every rank "
            "normalises by its own rows), or use GroupNorm"
        )
    return module if world.alone else cast(Network, nn.SyncBatchNorm.convert_sync_batchnorm(module))


@torch.no_grad()
def average_statistics(module: nn.Module, world: World) -> None:
    """Replace BatchNorm's running statistics by their mean over the ranks, in one exchange.

    In training every rank normalises by its own rows; in eval mode, and in attacks, all must be one network.
    """
    if world.alone:
        return
    found: list[Any] = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    buffers = [buffer for norm in found for buffer in (norm.running_mean, norm.running_var)]
    if not buffers:
        return
    means = world.mean(torch.cat(buffers)).split([len(buffer) for buffer in buffers])
    for buffer, mean in zip(buffers, means, strict=True):
        buffer.copy_(mean)
