"""What the rooms expect of each other: policies that choose attacks and learners that train under them."""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from astra_env.report import StepReport
from astra_env.strategy import AttackStrategy, StrategySpace


@runtime_checkable
class Policy(Protocol):
    """Chooses attacks; the signature is Stable-Baselines3's, so a trained SB3 model is a policy as it stands.

    A policy that sets ``accepts_tensors = True`` is given uint8 tensors on the learner's device, others NumPy arrays.
    Optional methods: ``learn_from(observation, actions, reward) -> dict`` to learn from each step, and
    ``state_dict()`` / ``load_state_dict(state)`` to be saved with a run.
    """

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """Return (actions, state): integer grid indices (N, 3) for a batch of N observations, (3,) for a single one."""


class Learner(Protocol):
    """A training run that is attacked with chosen strategies, one minibatch a step."""

    space: StrategySpace
    step_count: int
    total_steps: int

    @property
    def views_per_step(self) -> int:
        """How many images one step attacks."""

    @property
    def finished(self) -> bool:
        """Whether the training budget is used up."""

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""

    def observation(self) -> Tensor:
        """Return the images of the next step, uint8 (N, 3, H, W); the same until :meth:`step`."""

    def step(self, strategy: AttackStrategy) -> StepReport:
        """Train on the next minibatch under ``strategy``: N budgets, or one for all."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything the rest of the training depends on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where ``state`` was taken."""
