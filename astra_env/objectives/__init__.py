"""Training objectives: the self-supervised adversarial family, one method a file, by name in ``learner.objective``."""

from astra_env.objectives.acl import ACL
from astra_env.objectives.advcl import AdvCL
from astra_env.objectives.astra import Astra
from astra_env.objectives.barlow import Barlow
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
from astra_env.objectives.deacl import DeACL
from astra_env.objectives.dynacl import DynACL
from astra_env.objectives.rocl import RoCL
from astra_env.objectives.simclr import SimCLR

__all__ = [
    "ACL",
    "OBJECTIVES",
    "AdvCL",
    "Astra",
    "Barlow",
    "Batch",
    "DeACL",
    "DynACL",
    "Encoder",
    "Losses",
    "NoOptions",
    "RoCL",
    "Setting",
    "SimCLR",
    "TrainingObjective",
    "objective_factory",
]
