"""Attacks: projected gradient ascent with per-image budgets on any objective."""

from astra_env.attacks.engine import AttackResult, frozen, in_mode, perturb
from astra_env.attacks.norms import NORMS, get_norm
from astra_env.attacks.objectives import Contrastive, CrossEntropy, KLDivergence, Margin, Objective
from astra_env.attacks.pgd import AttackOptions, contrastive_attack, contrastive_pgd, supervised_attack, supervised_pgd
from astra_env.strategy import Attack

__all__ = [
    "NORMS",
    "Attack",
    "AttackOptions",
    "AttackResult",
    "Contrastive",
    "CrossEntropy",
    "KLDivergence",
    "Margin",
    "Objective",
    "contrastive_attack",
    "contrastive_pgd",
    "frozen",
    "get_norm",
    "in_mode",
    "perturb",
    "supervised_attack",
    "supervised_pgd",
]
