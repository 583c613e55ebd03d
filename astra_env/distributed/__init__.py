"""Several processes that train one network: everything that knows about ranks (torch.distributed under torchrun).

The rule of the house: N processes compute what one would. Whatever is random or small is the same on every rank (the
order of the images, the random numbers of views and attacks, the policy, the rewards, the optimiser); whatever is
expensive (augmented images, forward and backward passes) is done for a rank's own rows only.
"""

from astra_env.distributed.gradients import SharedGradients, buffers_kept
from astra_env.distributed.normalisation import average_statistics, with_shared_statistics
from astra_env.distributed.run import SharedRun, shared_state
from astra_env.distributed.start import launched, restarted, start
from astra_env.distributed.world import ALONE, World, world_of

__all__ = [
    "ALONE",
    "SharedGradients",
    "SharedRun",
    "World",
    "average_statistics",
    "buffers_kept",
    "launched",
    "restarted",
    "shared_state",
    "start",
    "with_shared_statistics",
    "world_of",
]
