"""Attack strategies (per-image epsilon, steps, step size) and the grids a policy chooses them from."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from astra_env.config.schema import ExperimentConfig
from astra_env.errors import ConfigError, InputError

PARAMETERS = ("epsilon", "steps", "step_size")
"""The three parameters of an attack, in the order of action columns, logits and heads."""
STEP_SIZE_UNITS = ("pixels", "relative")
MAX_FACTOR = 100.0
"""Largest relative step size taken as meant."""
CROSSING = 2.5
"""Total way of an attack that crosses its ball, in radii."""


@dataclass(frozen=True)
class Attack:
    """A fixed attack: projected gradient ascent of the same strength on every image.

    Attributes:
        epsilon: radius of the ball in [0, 1] pixel units (l2: length of the whole perturbation, which may exceed 1).
        step_size: length of a step, in the same units.
        steps: number of steps, >= 0.
        norm: of the ball, a name in :data:`astra_env.attacks.NORMS`.

    Raises:
        InputError: for a length outside its units or a negative number of steps.
    """

    epsilon: float
    step_size: float
    steps: int
    norm: str = "linf"

    def __post_init__(self) -> None:
        """Refuse numbers outside their units."""
        check_length("epsilon", self.epsilon, self.norm)
        check_length("step_size", self.step_size, self.norm)
        if self.steps < 0:
            raise InputError(f"steps: expected an integer >= 0, got {self.steps}")

    @classmethod
    def crossing(cls, epsilon: float, steps: int, norm: str = "linf") -> "Attack":
        """Return the attack whose steps cross the ball whatever their number: 2.5 * epsilon / steps (Madry 2018)."""
        return cls(epsilon, CROSSING * epsilon / max(steps, 1), steps, norm)

    def strategy(self, count: int, device: torch.device | str | None = None) -> "AttackStrategy":
        """Return this attack for each of ``count`` images."""
        epsilon, step_size = (torch.full((count,), float(x), device=device) for x in (self.epsilon, self.step_size))
        return AttackStrategy(epsilon, torch.full((count,), self.steps, dtype=torch.int64, device=device), step_size)


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
            got = ", ".join(map(str, shapes))
            raise InputError(f"AttackStrategy: expected three tensors of one shape (N,), got {got}")
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
        """Return the same l-inf attack for all ``n`` images; raises InputError for values outside their units."""
        return Attack(epsilon, step_size, steps).strategy(n, device)

    def __len__(self) -> int:
        return self.steps.shape[0]

    def to(self, device: torch.device | str) -> "AttackStrategy":
        """Return the same strategy with its tensors on ``device``."""
        return AttackStrategy(self.epsilon.to(device), self.steps.to(device), self.step_size.to(device))

    def for_each(self, count: int, device: torch.device | str) -> "AttackStrategy":
        """Return it on ``device`` with one entry for each of ``count`` images: a single entry is for all of them."""
        strategy = self.to(device)
        return AttackStrategy(*(getattr(strategy, x).expand(count) for x in PARAMETERS)) if len(self) == 1 else strategy

    def clean_where_idle(self) -> "AttackStrategy":
        """Return it with a radius of 0 where there are no steps, so that such an image stays what it is."""
        return AttackStrategy(self.epsilon * (self.steps > 0), self.steps, self.step_size)

    def __getitem__(self, rows: Any) -> "AttackStrategy":
        return AttackStrategy(self.epsilon[rows], self.steps[rows], self.step_size[rows])


def check_pixel_units(field: str, value: float) -> None:
    """Raise InputError unless ``value`` is in [0, 1] pixel units, with a hint when it looks like 0-255 units."""
    if not 0 <= value <= 1:
        hint = f"; in 0-255 units write '{value:g}/255'" if 1 < value <= 255 else ""
        raise InputError(f"{field}: expected a number in [0, 1] pixel units, got {value:g}{hint}")


def check_length(field: str, value: float, norm: str) -> None:
    """Raise InputError unless ``value`` is a length in ``norm``: at most 1 in "linf", else finite and not negative."""
    if norm == "linf":
        check_pixel_units(field, value)
    elif not 0 <= value < float("inf"):
        raise InputError(f"{field}: expected a finite {norm} length >= 0 in [0, 1] pixel units, got {value:g}")


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
        step_size: step lengths in the unit below; default (1..5)/255.
        norm: of the ball; lengths in another norm than "linf" may exceed 1.
        step_size_unit: "pixels" ([0, 1] pixel units), or "relative": multiples of epsilon / steps.

    Raises:
        ConfigError: for an empty grid, a repeated value or a value outside its units.
    """

    def __init__(
        self,
        epsilon: Sequence[Any] | None = None,
        steps: Sequence[int] | None = None,
        step_size: Sequence[Any] | None = None,
        norm: str = "linf",
        step_size_unit: str = "pixels",
    ) -> None:
        if step_size_unit not in STEP_SIZE_UNITS:
            raise ConfigError(
                f"strategy.step_size_unit: expected one of {', '.join(STEP_SIZE_UNITS)}, got {step_size_unit!r}"
            )
        self.step_size_unit = step_size_unit
        self.epsilon = _grid("epsilon", [i / 255 for i in range(3, 16)] if epsilon is None else epsilon, norm)
        self.steps = _step_grid(range(3, 15) if steps is None else steps)
        sizes = [i / 255 for i in range(1, 6)] if step_size is None else step_size
        self.step_size = _factor_grid(sizes) if self.relative else _grid("step_size", sizes, norm)
        self._tables: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    @classmethod
    def of(cls, config: ExperimentConfig) -> "StrategySpace":
        """Return the grids of a run: those of ``strategy``, lengths in ``learner.norm``."""
        grids = config.strategy
        return cls(grids.epsilon, grids.steps, grids.step_size, config.learner.norm, grids.step_size_unit)

    @property
    def relative(self) -> bool:
        """Whether step sizes are multiples of epsilon / steps."""
        return self.step_size_unit == "relative"

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Number of values of each grid, in the order epsilon, steps, step size: the ``nvec`` of MultiDiscrete."""
        return len(self.epsilon), len(self.steps), len(self.step_size)

    def decode(self, actions: Any, *, device: torch.device | str | None = None, check: bool = True) -> AttackStrategy:
        """Turn grid indices into attacks.

        Args:
            actions: integers (N, 3) or (3,) (one attack, N = 1); columns epsilon, steps, step_size; array or tensor.
            device: where the result lives; default the tensor's own device, or the CPU for arrays.
            check: verify that indices are inside the grids, which waits for the device; needless for sampled ones.

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
        radius, count, size = epsilon[indices[:, 0]], steps[indices[:, 1]], step_size[indices[:, 2]]
        return AttackStrategy(radius, count, size * radius / count.clamp_min(1) if self.relative else size)

    def on_grid(self, strategy: AttackStrategy) -> tuple[Tensor, Tensor, Tensor]:
        """Return the grid's values of a decoded strategy: epsilon, steps, step size, each (N,) float."""
        size = strategy.step_size
        if self.relative:
            size = size * strategy.steps.clamp_min(1) / strategy.epsilon
        return strategy.epsilon.float(), strategy.steps.float(), size.float()

    def encode(self, epsilon: float, steps: int, step_size: float) -> tuple[int, int, int]:
        """Return the grid indices of one attack, its step size in [0, 1] pixel units whatever the grid's unit.

        Raises InputError when a value is not on its grid.
        """
        first = _index_of("epsilon", self.epsilon, epsilon), _index_of("steps", self.steps, steps)
        if not self.relative:
            return (*first, _index_of("step_size", self.step_size, step_size))
        multiple = step_size * max(1, steps) / epsilon if epsilon else 0.0
        if steps == 0:
            return (*first, 0)  # a step that is never made has no length
        return (*first, _index_of("step_size (in epsilon / steps)", self.step_size, multiple))

    def _check(self, indices: Tensor) -> None:
        low, high = indices.amin(0).tolist(), indices.amax(0).tolist()
        for column, (name, size) in enumerate(zip(PARAMETERS, self.sizes, strict=True)):
            if low[column] < 0 or high[column] >= size:
                bad = low[column] if low[column] < 0 else high[column]
                raise InputError(f"actions[:, {column}] ({name}): expected indices 0..{size - 1}, got {bad}")

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        if device not in self._tables:
            epsilon, step_size = (torch.tensor(grid, device=device) for grid in (self.epsilon, self.step_size))
            self._tables[device] = (epsilon, torch.tensor(self.steps, dtype=torch.int64, device=device), step_size)
        return self._tables[device]

    def __eq__(self, other: object) -> bool:
        names = (*PARAMETERS, "step_size_unit")
        return isinstance(other, StrategySpace) and all(getattr(self, x) == getattr(other, x) for x in names)

    def __hash__(self) -> int:
        return hash((self.epsilon, self.steps, self.step_size, self.step_size_unit))

    def __repr__(self) -> str:
        unit = f", step_size_unit={self.step_size_unit!r}" if self.relative else ""
        return f"StrategySpace(epsilon={self.epsilon}, steps={self.steps}, step_size={self.step_size}{unit})"


def _grid(name: str, values: Sequence[Any], norm: str) -> tuple[float, ...]:
    grid = tuple(parse_number(f"strategy.{name}", value) for value in _listed(name, values))
    for value in grid:
        check_length(f"strategy.{name}", value, norm)
    return _unique(name, grid)


def _factor_grid(values: Sequence[Any]) -> tuple[float, ...]:
    grid = tuple(parse_number("strategy.step_size", value) for value in _listed("step_size", values))
    for value in grid:
        if not 0 < value <= MAX_FACTOR:
            raise ConfigError(
                f"strategy.step_size: expected multiples of epsilon / steps in (0, {MAX_FACTOR:g}], got {value:g}"
            )
    return _unique("step_size", grid)


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
        got = f"{str(actions)[:60]!r} ({type(actions).__name__})"
        raise InputError(f"actions: expected integers of shape (N, 3) or (3,), got {got}") from error


def _index_of(name: str, grid: tuple[float, ...], value: float) -> int:
    for index, candidate in enumerate(grid):
        if abs(candidate - value) < 1e-6:
            return index
    raise InputError(f"{name}: expected a value of the grid ({', '.join(f'{x:.4g}' for x in grid)}), got {value:.4g}")


class StrategyCounts:
    """How often each grid value was chosen since the last :meth:`take`."""

    def __init__(self, space: StrategySpace, device: torch.device) -> None:
        self._space = space
        self._grids = [torch.tensor(getattr(space, name), device=device, dtype=torch.float32) for name in PARAMETERS]
        self._counts = [torch.zeros(len(grid), dtype=torch.int64, device=device) for grid in self._grids]

    def add(self, strategy: AttackStrategy | None) -> None:
        """Count the attacks of one step."""
        if strategy is None:
            return
        for chosen, grid, count in zip(self._space.on_grid(strategy), self._grids, self._counts, strict=True):
            count += ((chosen[:, None] - grid[None]).abs() < 1e-6 * grid.clamp_min(1)).sum(0)

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
