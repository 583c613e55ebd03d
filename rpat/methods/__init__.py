"""The training methods, one file each."""

from rpat.methods.base import Budget, Defaults, Method, Progress, RobustPerception, Step
from rpat.methods.consistency import Consistency
from rpat.methods.make import make_method, method_class
from rpat.methods.mart import MART
from rpat.methods.pgd_at import PGDAT
from rpat.methods.rebat import ReBAT
from rpat.methods.registry import METHODS
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
