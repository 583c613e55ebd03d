"""Training objectives: the self-supervised adversarial family, one method a file, by name in ``learner.objective``."""

from astra_env.objectives.acl import ACL
from astra_env.objectives.astra import Astra
from astra_env.objectives.base import (
    OBJECTIVES,
    Batch,
    Encoder,
    Losses,
    NoOptions,
    Setting,
    TrainingObjective,
    objective_factory,
)
from astra_env.objectives.simclr import SimCLR

__all__ = [
    "ACL",
    "OBJECTIVES",
    "Astra",
    "Batch",
    "Encoder",
    "Losses",
    "NoOptions",
    "Setting",
    "SimCLR",
    "TrainingObjective",
    "objective_factory",
]
