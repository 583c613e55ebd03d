"""What an attack strategy is rewarded for: pure, named functions of one training step's features.

All rewards are measured on the target network before its update, in eval mode. ``(N,)`` rewards give every view its
own credit; scalar rewards are shared by the whole batch, as published.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from astra_env.errors import ConfigError, InputError
from astra_env.losses import mixed_nt_xent, nt_xent
from astra_env.registry import Registry
from astra_env.strategy import PARAMETERS, Attack, AttackStrategy, parse_number

Reward = Callable[["RewardInputs"], Tensor]
REWARDS: Registry[Callable[..., Reward]] = Registry("learner.reward")


FIXED_ATTACK = Attack(8 / 255, 2 / 255, 5)
"""What ACL trains with."""


@dataclass(frozen=True)
class RewardInputs:
    """What a reward may look at.

    Attributes:
        clean_features: (N, D), eval mode, clean branch; rows 2k and 2k+1 are a pair.
        adv_features: (N, D), eval mode, adversarial branch, of the attacked views.
        strategy: the attack of each view.
        temperature: of NT-Xent.
        reference_features: (N, D), as ``adv_features`` under a fixed attack; only for rewards that ask for it.
        loss: what the attack is to raise, of features (N, D) and a reduction: "mean" -> scalar, "none" -> (N,);
            default NT-Xent.
    """

    clean_features: Tensor
    adv_features: Tensor
    strategy: AttackStrategy
    temperature: float = 0.5
    reference_features: Tensor | None = None
    loss: Callable[[Tensor, str], Tensor] | None = None

    def terms(self) -> dict[str, Tensor]:
        """Return what rewards are made of, to be watched: the mean loss of each kind of features, as scalars."""
        features = {"clean": self.clean_features, "adv": self.adv_features, "reference": self.reference_features}
        present = {name: value for name, value in features.items() if value is not None}
        return {f"reward_{name}_loss": self._loss(value, "mean") for name, value in present.items()}

    def gain(self, over: Tensor, credit: str) -> Tensor:
        """Return (NT-Xent(adv) - NT-Xent(over)) / 3: a scalar for shared credit, (N,) for per-view credit."""
        reduction = "none" if credit == "per_view" else "mean"
        return (self._loss(self.adv_features, reduction) - self._loss(over, reduction)) / 3

    def _loss(self, features: Tensor, reduction: str) -> Tensor:
        if self.loss is not None:
            return self.loss(features, reduction)
        return nt_xent(features, self.temperature, reduction)


@dataclass(frozen=True)
class Astra:
    """The published reward: how much the attack raises the batch's contrastive loss (ASTrA, 2025).

    ``(NT-Xent(adv) - NT-Xent(clean) - mixed_weight * NT-Xent(clean_i, adv_i)) / 3``, one scalar for all views.
    """

    mixed_weight: float = 0.0

    def __call__(self, inputs: RewardInputs) -> Tensor:
        """Return the scalar reward."""
        reward = inputs.gain(inputs.clean_features, "shared")
        if self.mixed_weight:
            mixed = mixed_nt_xent(inputs.clean_features, inputs.adv_features, inputs.temperature)
            reward = reward - self.mixed_weight * mixed / 3
        return reward


@dataclass(frozen=True)
class PerView:
    """The published reward with per-view credit: how much the attack raises each view's own NT-Xent; (N,)."""

    def __call__(self, inputs: RewardInputs) -> Tensor:
        """Return one reward per view."""
        return inputs.gain(inputs.clean_features, "per_view")


@dataclass(frozen=True)
class VersusFixed:
    """The gain over what a fixed attack reaches on the same views and network; costs one more attack a step.

    Args of the registered name: ``epsilon``, ``steps``, ``step_size`` of the fixed attack, in the norm of training, and
    ``credit``, "per_view" -> (N,) or "shared" -> scalar.
    """

    attack: Attack = FIXED_ATTACK
    credit: str = "shared"

    def reference(self, count: int) -> AttackStrategy:
        """Return the fixed attack for ``count`` views, on the CPU; for 1, it is every view's."""
        return self.attack.strategy(count)

    def __call__(self, inputs: RewardInputs) -> Tensor:
        """Return the gain over the reference features."""
        if inputs.reference_features is None:
            raise ValueError("vs_fixed needs reference_features: attack the same views with reference(...) first")
        return inputs.gain(inputs.reference_features, self.credit)


@dataclass(frozen=True)
class CostAware:
    """The published gain minus ``cost`` for every gradient step the attack spends."""

    cost: float = 0.004
    credit: str = "per_view"

    def __call__(self, inputs: RewardInputs) -> Tensor:
        """Return the gain minus the price of the steps: (N,) for per-view credit, else a scalar."""
        steps = inputs.strategy.steps.to(inputs.adv_features.dtype)
        price = self.cost * (steps if self.credit == "per_view" else steps.mean())
        return inputs.gain(inputs.clean_features, self.credit) - price


@dataclass(frozen=True)
class Constant:
    """The control: a reward that knows nothing of the attack."""

    value: float = 1.0

    def __call__(self, inputs: RewardInputs) -> Tensor:
        """Return ``value`` as a scalar tensor."""
        return inputs.adv_features.new_full((), self.value)


@dataclass(frozen=True)
class Nothing:
    """No reward, for policies that do not learn: nothing is measured for it, so that it costs nothing."""

    needs_features: ClassVar[bool] = False

    def __call__(self, inputs: RewardInputs) -> Tensor:
        """Return zero."""
        return inputs.adv_features.new_zeros(())


REWARDS.register("none")(Nothing)
REWARDS.register("astra")(Astra)
REWARDS.register("per_view")(PerView)
REWARDS.register("vs_fixed")(VersusFixed)
REWARDS.register("cost_aware")(CostAware)
REWARDS.register("constant")(Constant)


def make_reward(
    name: str, arguments: Mapping[str, Any] | None = None, registry: Registry[Any] = REWARDS, norm: str = "linf"
) -> Any:
    """Build a reward by registered name or ``module:attribute``; raises ConfigError for unknown names or arguments.

    Args:
        name: which one.
        arguments: of its class or function. Where that takes an ``attack`` with a default :class:`Attack`, ``epsilon``,
            ``steps`` and ``step_size`` are arguments that change it.
        registry: the names that the learner knows; each learner's rewards look at inputs of its own.
        norm: of training, and so of that attack.
    """
    arguments = dict(arguments or {})
    credit = arguments.get("credit", "shared")
    if credit not in ("shared", "per_view"):
        raise ConfigError(f"learner.reward_args.credit: expected 'shared' or 'per_view', got {credit!r}")
    make = registry.get(name)
    try:
        default = inspect.signature(make).parameters.get("attack")
        if default is not None and isinstance(default.default, Attack):
            arguments["attack"] = _changed(default.default, arguments, norm)
        return make(**arguments)  # type: ignore[no-any-return]
    except TypeError as error:
        raise ConfigError(f"learner.reward_args: {error} (reward {name!r})") from error


def _changed(attack: Attack, arguments: dict[str, Any], norm: str) -> Attack:
    """Return ``attack`` in ``norm``, with the strength that ``arguments`` give, which they lose."""
    given = {key: arguments.pop(key) for key in PARAMETERS if key in arguments}
    lengths = {key: parse_number(f"learner.reward_args.{key}", given[key]) for key in given if key != "steps"}
    try:
        return replace(attack, norm=norm, **{**given, **lengths})
    except InputError as error:
        raise ConfigError(f"learner.reward_args.{error}") from error
