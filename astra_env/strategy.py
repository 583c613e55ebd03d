"""Attack strategies (per-image epsilon, steps, step size) and the grids a policy chooses them from."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from astra_env.errors import ConfigError, InputError

PARAMETERS = ("epsilon", "steps", "step_size")
"""The three parameters of an attack, in the order of action columns, logits and heads."""


@dataclass(frozen=True)
class AttackStrategy:
    """How strongly each image of a batch is attacked.

    Attributes:
        epsilon: float tensor (N,), radius of the ball in [0, 1] pixel units.
        steps: int64 tensor (N,), number of gradient steps, >= 0.
        step_size: float tensor (N,), length of one step in [0, 1] pixel units.

    Raises:
        InputError: when the three tensors are not one-dimensional and of one length.
    """

    epsilon: Tensor
    steps: Tensor
    step_size: Tensor

    def __post_init__(self) -> None:
        """Refuse tensors whose shapes do not belong together."""
        shapes = [tuple(getattr(self, name).shape) for name in PARAMETERS]
        if len(shapes[0]) != 1 or len(set(shapes)) != 1:
            raise InputError(
                f"AttackStrategy: expected three tensors of one shape (N,), got {', '.join(map(str, shapes))}"
            )
        if self.steps.is_floating_point():
            raise InputError(f"AttackStrategy.steps: expected an integer tensor, got {self.steps.dtype}")

    @classmethod
    def constant(
        cls,
        n: int,
        epsilon: float = 8 / 255,
        steps: int = 5,
        step_size: float = 2 / 255,
        device: torch.device | str | None = None,
    ) -> "AttackStrategy":
        """Return the same attack for all ``n`` images; raises InputError for values outside their units."""
        check_pixel_units("epsilon", epsilon)
        check_pixel_units("step_size", step_size)
        return cls.repeated(n, epsilon, steps, step_size, device)

    @classmethod
    def repeated(
        cls, n: int, epsilon: float, steps: int, step_size: float, device: torch.device | str | None = None
    ) -> "AttackStrategy":
        """Return what :meth:`constant` does for lengths in any norm, l-2 radii beyond 1 included."""
        if steps < 0:
            raise InputError(f"steps: expected an integer >= 0, got {steps}")
        return cls(
            torch.full((n,), float(epsilon), dtype=torch.float32, device=device),
            torch.full((n,), int(steps), dtype=torch.int64, device=device),
            torch.full((n,), float(step_size), dtype=torch.float32, device=device),
        )

    def __len__(self) -> int:
        return self.steps.shape[0]

    def to(self, device: torch.device | str) -> "AttackStrategy":
        """Return the same strategy with its tensors on ``device``."""
        return AttackStrategy(self.epsilon.to(device), self.steps.to(device), self.step_size.to(device))

    def for_each(self, count: int, device: torch.device | str) -> "AttackStrategy":
        """Return it on ``device`` with one entry for each of ``count`` images: a single entry is for all of them."""
        strategy = self.to(device)
        if len(strategy) != 1:
            return strategy
        return AttackStrategy(*(getattr(strategy, name).expand(count) for name in PARAMETERS))

    def __getitem__(self, rows: Any) -> "AttackStrategy":
        return AttackStrategy(self.epsilon[rows], self.steps[rows], self.step_size[rows])


def check_pixel_units(field: str, value: float) -> None:
    """Raise InputError unless ``value`` is in [0, 1] pixel units, with a hint when it looks like 0-255 units."""
    if not 0 <= value <= 1:
        hint = f"; in 0-255 units write '{value:g}/255'" if 1 < value <= 255 else ""
        raise InputError(f"{field}: expected a number in [0, 1] pixel units, got {value:g}{hint}")


def parse_number(field: str, value: Any) -> float:
    """Read a number given as a number or as a fraction such as ``"8/255"``; raises ConfigError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ConfigError(f"{field}: expected a number or a fraction such as '8/255', got {value!r}")
    try:
        return float(Fraction(value.replace(" ", ""))) if isinstance(value, str) else float(value)
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"{field}: expected a number or a fraction such as '8/255', got {value!r}") from error


class StrategySpace:
    """The grids of epsilon, steps and step size; decodes grid indices into attacks.

    Args:
        epsilon: radii in [0, 1] pixel units; default (3..15)/255 as in ASTrA.
        steps: numbers of PGD steps; default 3..14.
        step_size: step lengths in [0, 1] pixel units; default (1..5)/255.

    Raises:
        ConfigError: for an empty grid, a repeated value or a value outside its units.
    """

    def __init__(
        self,
        epsilon: Sequence[Any] | None = None,
        steps: Sequence[int] | None = None,
        step_size: Sequence[Any] | None = None,
    ) -> None:
        self.epsilon = _pixel_grid("epsilon", [i / 255 for i in range(3, 16)] if epsilon is None else epsilon)
        self.steps = _step_grid(range(3, 15) if steps is None else steps)
        self.step_size = _pixel_grid("step_size", [i / 255 for i in range(1, 6)] if step_size is None else step_size)
        self._tables: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Number of values of each grid, in the order epsilon, steps, step size: the ``nvec`` of MultiDiscrete."""
        return len(self.epsilon), len(self.steps), len(self.step_size)

    def decode(self, actions: Any, *, device: torch.device | str | None = None, check: bool = True) -> AttackStrategy:
        """Turn grid indices into attacks.

        Args:
            actions: integers (N, 3) or (3,) (one attack, N = 1); columns epsilon, steps, step_size; array or tensor.
            device: where the result lives; default the tensor's own device, or the CPU for arrays.
            check: verify that the indices are inside the grids. Costs a device synchronisation on CUDA; switch it
                off for actions sampled over the same grids.

        Raises:
            InputError: for another shape, a non-integer dtype or an index outside its grid.
        """
        given = actions if isinstance(actions, Tensor) else _as_tensor(actions)
        indices = given[None] if given.dim() == 1 else given
        if indices.dim() != 2 or indices.shape[1] != len(PARAMETERS) or len(indices) == 0:
            raise InputError(f"actions: expected integers of shape (N, 3) or (3,), got shape {tuple(given.shape)}")
        if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
            raise InputError(f"actions: expected integers, got {indices.dtype}")
        indices = indices.to(torch.int64)
        if check:
            self._check(indices)  # where they came from: an array's need no device
        if device is not None:
            indices = indices.to(device)
        epsilon, steps, step_size = self._on(indices.device)
        return AttackStrategy(epsilon[indices[:, 0]], steps[indices[:, 1]], step_size[indices[:, 2]])

    def encode(self, epsilon: float, steps: int, step_size: float) -> tuple[int, int, int]:
        """Return the grid indices of one attack; raises InputError when a value is not on its grid."""
        return (
            _index_of("epsilon", self.epsilon, epsilon),
            _index_of("steps", self.steps, steps),
            _index_of("step_size", self.step_size, step_size),
        )

    def _check(self, indices: Tensor) -> None:
        low, high = torch.stack((indices.amin(0), indices.amax(0))).tolist()  # one wait for a device
        for column, (name, size) in enumerate(zip(PARAMETERS, self.sizes, strict=True)):
            if low[column] < 0 or high[column] >= size:
                bad = low[column] if low[column] < 0 else high[column]
                raise InputError(f"actions[:, {column}] ({name}): expected indices 0..{size - 1}, got {bad}")

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        if device not in self._tables:
            self._tables[device] = (
                torch.tensor(self.epsilon, dtype=torch.float32, device=device),
                torch.tensor(self.steps, dtype=torch.int64, device=device),
                torch.tensor(self.step_size, dtype=torch.float32, device=device),
            )
        return self._tables[device]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StrategySpace):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in PARAMETERS)

    def __hash__(self) -> int:
        return hash((self.epsilon, self.steps, self.step_size))

    def __repr__(self) -> str:
        return f"StrategySpace(epsilon={self.epsilon}, steps={self.steps}, step_size={self.step_size})"


def _pixel_grid(name: str, values: Sequence[Any]) -> tuple[float, ...]:
    grid = tuple(parse_number(f"strategy.{name}", value) for value in _listed(name, values))
    for value in grid:
        check_pixel_units(f"strategy.{name}", value)
    return _unique(name, grid)


def _step_grid(values: Sequence[int]) -> tuple[int, ...]:
    for value in _listed("steps", values):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
            raise ConfigError(f"strategy.steps: expected integers >= 0, got {value!r}")
    return _unique("steps", tuple(int(value) for value in values))


def _listed(name: str, values: Sequence[Any]) -> Sequence[Any]:
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) == 0:
        raise ConfigError(f"strategy.{name}: expected a non-empty list of values, got {values!r}")
    return values


def _unique(name: str, grid: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(grid)) != len(grid):
        raise ConfigError(f"strategy.{name}: expected distinct values, got {list(grid)}")
    return grid


def _as_tensor(actions: Any) -> Tensor:
    try:
        return torch.from_numpy(np.array(actions))
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"actions: expected integers of shape (N, 3) or (3,), got {str(actions)[:60]!r} ({type(actions).__name__})"
        ) from error


def _index_of(name: str, grid: tuple[float, ...], value: float) -> int:
    for index, candidate in enumerate(grid):
        if abs(candidate - value) < 1e-6:
            return index
    allowed = ", ".join(f"{candidate:.4g}" for candidate in grid)
    raise InputError(f"{name}: expected a value of the grid ({allowed}), got {value:.4g}")


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
