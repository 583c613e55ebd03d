"""What changes from epoch to epoch: learning rate, strength of the attack, weight of a regulariser.

Epochs count from 0 and every function is pure, so a resumed run needs no schedule state.
"""

import math
from collections.abc import Sequence

EARLY_MILESTONES = (100, 105)
"""Where the learning rate falls in runs of fewer than 200 epochs (official RPAT code)."""

LONG_RUN = 200


def default_milestones(epochs: int) -> list[int]:
    """Return the epochs at which the learning rate falls: 100 and 105, in runs of 200 epochs or more 50 % and 75 %."""
    return list(EARLY_MILESTONES) if epochs < LONG_RUN else relative_milestones(epochs)


def relative_milestones(epochs: int) -> list[int]:
    """Return 50 % and 75 % of the run."""
    return [epochs // 2, epochs * 3 // 4]


def piecewise(epoch: int, milestones: Sequence[int], factor: float) -> float:
    """Return ``factor`` to the power of the milestones reached."""
    return factor ** sum(epoch >= milestone for milestone in milestones)


def cosine(epoch: int, epochs: int) -> float:
    """Return half a cosine from 1 at epoch 0 towards 0 at ``epochs``."""
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))
