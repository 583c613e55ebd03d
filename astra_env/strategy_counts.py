"""Counting which attacks were chosen, without waiting for the device."""

import torch
from torch import Tensor

from astra_env.strategy import PARAMETERS, AttackStrategy, StrategySpace


class StrategyCounts:
    """How often each grid value was chosen since the last :meth:`take`."""

    def __init__(self, space: StrategySpace, device: torch.device) -> None:
        self._grids = [torch.tensor(getattr(space, name), device=device, dtype=torch.float32) for name in PARAMETERS]
        self._counts = [torch.zeros(len(grid), dtype=torch.int64, device=device) for grid in self._grids]

    def add(self, strategy: AttackStrategy | None) -> None:
        """Count the attacks of one step."""
        if strategy is None:
            return
        for name, grid, count in zip(PARAMETERS, self._grids, self._counts, strict=True):
            chosen = getattr(strategy, name).float()
            count += ((chosen[:, None] - grid[None]).abs() < 1e-6).sum(0)

    def take(self) -> dict[str, list[float]]:
        """Return the shares of every grid's values, in the order of the grids, and start again; empty for no attack."""
        counts = torch.cat(self._counts).tolist()
        shares = {}
        for name, grid in zip(PARAMETERS, self._grids, strict=True):
            mine, counts = counts[: len(grid)], counts[len(grid) :]
            if sum(mine):
                shares[f"{name}_shares"] = [count / sum(mine) for count in mine]
        for count in self._counts:
            count.zero_()
        return shares

    def state(self) -> list[Tensor]:
        """Return the counts since the last :meth:`take`."""
        return [count.cpu() for count in self._counts]

    def load(self, state: list[Tensor]) -> None:
        """Continue counting where ``state`` was taken."""
        for count, saved in zip(self._counts, state, strict=True):
            count.copy_(saved)
