"""What one step of training reports; tensors stay on the device until somebody reads them."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from astra_env.errors import Diverged
from astra_env.strategy import AttackStrategy


@dataclass
class StepReport:
    """The outcome of one training step.

    Attributes:
        step: 0-based index of the step.
        learning_rate: the one used.
        strategy: the attack of every view, or None when the objective uses none.
        reward: scalar, or (N,) with one reward per view; measured before the update.
        terms: scalars to watch, on the device: loss, its parts, grad_norm, alignment, uniformity.
        views: the clean views (N, 3, H, W) in [0, 1].
        adversarial: the attacked views; the clean ones when there is no attack.
        policy_terms: what a learning policy reports, if one acted.
    """

    step: int
    learning_rate: float
    strategy: AttackStrategy | None
    reward: Tensor
    terms: dict[str, Tensor]
    views: Tensor
    adversarial: Tensor
    policy_terms: dict[str, float | Tensor] = field(default_factory=dict)

    def scalars(self) -> dict[str, float]:
        """Bring every scalar to the host in one transfer.

        Raises:
            Diverged: when the loss or the gradient is not finite. The weights may be spoilt: go back to a checkpoint.
        """
        tensors = {**self.terms, "reward": self.reward.mean()}
        if self.strategy is not None:
            tensors["mean_epsilon"] = self.strategy.epsilon.mean()
            tensors["mean_steps"] = self.strategy.steps.float().mean()
            tensors["mean_step_size"] = self.strategy.step_size.mean()
        tensors |= {f"policy/{name}": torch.as_tensor(value) for name, value in self.policy_terms.items()}
        device = self.reward.device
        values = torch.stack([value.detach().to(device, torch.float32) for value in tensors.values()]).tolist()
        scalars = dict(zip(tensors, values, strict=True))
        for name in ("loss", "grad_norm", "policy/loss", "policy/grad_norm"):
            if not math.isfinite(scalars.get(name, 0.0)):
                raise Diverged(
                    f"training diverged at step {self.step}: {name} is {scalars[name]}; lower learner.learning_rate "
                    "(or the policy's), or set run.on_divergence to rollback"
                )
        return {**scalars, "learning_rate": self.learning_rate}
