"""The training methods, one file each."""

from astra_env.strategy import Attack as Budget  # the name that methods written for 0.1 know
from rpat.methods.base import (
    METHODS,
    Defaults,
    Method,
    Progress,
    RobustPerception,
    Step,
    make_method,
    method_class,
)
from rpat.methods.consistency import Consistency
from rpat.methods.mart import MART
from rpat.methods.pgd_at import PGDAT
from rpat.methods.rebat import ReBAT
from rpat.methods.trades import TRADES

__all__ = [
    "MART",
    "METHODS",
    "PGDAT",
    "TRADES",
    "Budget",
    "Consistency",
    "Defaults",
    "Method",
    "Progress",
    "ReBAT",
    "RobustPerception",
    "Step",
    "make_method",
    "method_class",
]
