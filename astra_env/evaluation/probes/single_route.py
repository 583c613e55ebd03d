"""One branch of an encoder as an encoder of its own."""

from copy import deepcopy

from torch import nn

from astra_env.models.layers import BRANCHES, BranchNorm, require_choice
from astra_env.models.target import TargetNetwork


def single_route(encoder: nn.Module, branch: str = "adv") -> nn.Module:
    """Return a copy of an encoder that keeps one BatchNorm branch and answers with it whichever branch is asked for.

    An encoder without branches is copied as it is. Raises InputError for another branch than "clean" or "adv".
    """
    require_choice("branch", branch, BRANCHES)
    copy = deepcopy(encoder)
    for module in list(copy.modules()):
        if isinstance(module, BranchNorm) and len(module.bn_list) > 1:
            module.bn_list = nn.ModuleList([module.bn_list[BRANCHES.index(branch)]])
    if isinstance(copy, TargetNetwork) and copy.norm == "branch":
        copy.norm = "single"
    return copy
