"""The adversary of a contrastive training: attacks minibatches and says what an attack was worth."""

from typing import Any

import torch
from torch import Tensor

from astra_env.attacks import AttackResult, contrastive_attack, frozen
from astra_env.attacks.attack_copy import AttackCopy
from astra_env.compute import Speed
from astra_env.config.schema import LearnerConfig
from astra_env.distributed import World, buffers_kept
from astra_env.learner.spending import ComputeMeter
from astra_env.models import Target
from astra_env.objectives import Batch, TrainingObjective
from astra_env.rewards import RewardInputs
from astra_env.strategy import AttackStrategy


class Adversary:
    """Attacks the target network as its objective wants it, and measures rewards of damage.

    Args:
        target: the network.
        objective: what is trained, and so what an attack raises.
        reward: of an attack's damage; looked at only when ``rewarding``.
        rewarding: whether rewards of damage are wanted, which cost forward passes.
        options: the learner's.
        speed: how passes are computed.
        meter: counts them.
        generator: of random starts.
        world: the ranks over which batches are spread.

    Attributes:
        steps: gradient steps made so far, over all views; a scalar that stays on the device.
    """

    def __init__(
        self,
        target: Target,
        objective: TrainingObjective,
        reward: Any,
        *,
        rewarding: bool,
        options: LearnerConfig,
        speed: Speed,
        meter: ComputeMeter,
        generator: torch.Generator,
        world: World,
    ) -> None:
        self.target = target
        self.objective = objective
        self.reward = reward
        self.rewarding = rewarding
        self.options = options
        self.speed = speed
        self.meter = meter
        self.generator = generator
        self.world = world
        self.steps = torch.zeros((), dtype=torch.int64, device=generator.device)
        self._copy = AttackCopy(target, speed, branch="adv")

    def budgets(self, batch: Batch, strategy: AttackStrategy) -> AttackStrategy:
        """Return the attack of every view that comes of the chosen one, or ones."""
        return self.objective.budgets(strategy.for_each(2 * len(batch.indices), batch.views.device))

    def attack(self, batch: Batch, strategy: AttackStrategy) -> AttackResult:
        """Attack the batch; an objective without attacks gets its views back."""
        if not self.objective.attacked:
            return AttackResult(batch.views, None)
        self.steps = self.steps + strategy.steps.sum()
        views, folded = batch.views, self.speed.fold_batchnorm
        copied = self.meter.counted(self._copy.forward(len(views))) if folded else None
        return contrastive_attack(
            self.target,
            views,
            self.world.own(strategy.clean_where_idle()),
            norm=self.options.norm,
            generator=self.generator,
            autocast=None if folded else self.speed.autocast,
            forward=copied or (lambda x: self.objective.outputs(x, "adv")),
            objective=self.objective.attack_goal(batch),
            final_outputs=self.rewarding,
            world=self.world,
            chunks=self.options.accumulate,
            clip_start=self.objective.clip_start,
            attack_mode=self.options.attack_mode,
            whole_batch=self.objective.whole_batch,
        )

    def trial(self, batch: Batch, strategy: AttackStrategy) -> AttackResult:
        """Attack without a trace in the running statistics, which move in training mode."""
        with buffers_kept(self.target), buffers_kept(self.objective.encoder):
            return self.attack(batch, strategy)

    def judge(self, batch: Batch, strategy: AttackStrategy, attack: AttackResult) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the reward of the damage done, and what it is made of; zero where there is none."""
        if attack.outputs is None:
            return batch.views.new_zeros(()), {}
        fixed = getattr(self.reward, "reference", None)
        reference = None if fixed is None else self.trial(batch, self.budgets(batch, fixed(1)))
        with frozen(self.target), torch.no_grad():
            clean = self._clean_outputs(batch.views)
        inputs = RewardInputs(
            clean_features=self._features(clean),
            adv_features=self._features(attack.outputs),
            strategy=strategy,
            temperature=self.options.temperature,
            reference_features=None if reference is None else self._features(reference.outputs),
            loss=self.objective.reward_loss(batch),
        )
        return self.reward(inputs), inputs.terms()

    def _features(self, outputs: Tensor | None) -> Tensor:
        assert outputs is not None
        return self.objective.features(self.world.gather(outputs))

    def _clean_outputs(self, views: Tensor) -> Tensor:
        chunks = views.tensor_split(self.options.accumulate)
        with torch.autocast(views.device.type, self.speed.autocast, enabled=self.speed.autocast is not None):
            outputs = [self.objective.outputs(chunk, self.objective.clean_branch) for chunk in chunks]
        return torch.cat(outputs).to(views.dtype)
