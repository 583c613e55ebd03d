"""The network as an attack sees it: folded and compiled where that is wanted."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from astra_env.attacks.compiled import Compiled
from astra_env.compute import Speed
from astra_env.models.folded import Folded


class AttackCopy:
    """A folded copy of a network, made when it is first needed and kept in step with the network from then on.

    Args:
        network: what is attacked, in eval mode.
        speed: its dtype, and the mode of ``torch.compile`` for it.
        constants: arguments of ``network`` that are not images, such as ``branch="adv"``.
    """

    def __init__(self, network: nn.Module, speed: Speed, **constants: Any) -> None:
        self._network = network
        self._speed = speed
        self._constants = constants
        self._copy: Folded | None = None
        self._forward: Callable[[Tensor], Tensor] | None = None

    def forward(self, count: int) -> Callable[[Tensor], Tensor]:
        """Return the forward pass of the network as it is now, for up to ``count`` images at once.

        Raises InputError for a network that cannot be folded.
        """
        if self._copy is None or self._forward is None:
            self._copy = Folded(self._network, self._speed.autocast or torch.float32, **self._constants)
            mode = self._speed.compile
            self._forward = self._copy if mode == "none" else Compiled(self._copy.inner.forward, count, mode)
        self._copy.refresh()
        return self._forward
