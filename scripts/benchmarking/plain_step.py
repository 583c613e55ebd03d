"""ASTrA's training step done the plain way, as a yardstick: same numbers, none of the savings.

Every view is attacked until the slowest one is done (a mask stops the others), the attack's backward pass computes
weight gradients nobody uses, strategies are converted one view at a time, features of the adversarial views are
computed again for the reward, and the optimiser walks over the parameters one by one.
"""

import torch

from astra_env.attacks import AttackResult
from astra_env.attacks.pgd import START_RADIUS
from astra_env.learner.adversary import Adversary
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.learner.protocol import StepReport
from astra_env.losses import nt_xent
from astra_env.objectives import Batch
from astra_env.optim import ZERO_NORM
from astra_env.strategy import AttackStrategy, StrategySpace


class PlainAdversary(Adversary):
    """The adversary with the plain attack."""

    def attack(self, batch: Batch, strategy: AttackStrategy) -> AttackResult:
        """Attack every view until the slowest one is done."""
        views = batch.views
        self.target.eval()
        epsilon = strategy.epsilon.view(-1, 1, 1, 1)
        step_size = strategy.step_size.view(-1, 1, 1, 1)
        noise = torch.rand(views.shape, generator=self.generator, device=views.device)
        delta = (views + (2 * noise - 1) * START_RADIUS).clamp(0, 1) - views
        for iteration in range(int(strategy.steps.max())):
            delta = delta.detach().requires_grad_()
            loss = nt_xent(self.target(views + delta, branch="adv"), self.options.temperature)
            loss.backward()
            assert delta.grad is not None
            moved = (delta + step_size * delta.grad.sign()).detach()
            moved = torch.maximum(torch.minimum(moved, epsilon), -epsilon)
            moved = (views + moved).clamp(0, 1) - views
            moving = (strategy.steps > iteration).view(-1, 1, 1, 1)
            delta = torch.where(moving, moved, delta.detach())
        adversarial = (views + delta).clamp(0, 1)
        with torch.no_grad():
            features = self.target(adversarial, branch="adv")
        return AttackResult(adversarial, features)


class PlainLearner(ContrastiveLearner):
    """The learner with the plain attack, reward and optimiser; for benchmarks only."""

    make_adversary = PlainAdversary

    def step(self, strategy: AttackStrategy) -> StepReport:
        """Train on the next minibatch, converting the strategy view by view as the official loop does."""
        return super().step(convert_one_by_one(self.space, strategy))

    def _update(self, learning_rate: float) -> None:
        group = self.optimizer.param_groups[0]
        decay, trust, momentum = group["weight_decay"], group["trust_coefficient"], group["momentum"]
        with torch.no_grad():
            for parameter in self.target.parameters():
                if parameter.grad is None:
                    continue
                weight_norm, gradient_norm = parameter.norm(), parameter.grad.norm()
                local = trust * weight_norm / (gradient_norm + decay * weight_norm)
                rate = learning_rate * (local if weight_norm >= ZERO_NORM and gradient_norm >= ZERO_NORM else 1.0)
                state = self.optimizer.state[parameter]
                buffer = state.setdefault("momentum_buffer", torch.zeros_like(parameter))
                buffer.mul_(momentum).add_((parameter.grad + decay * parameter) * rate)
                parameter.sub_(buffer)


def convert_one_by_one(space: StrategySpace, strategy: AttackStrategy) -> AttackStrategy:
    """Rebuild a strategy through Python numbers, one view at a time."""
    epsilon, steps, step_size = [], [], []
    for view in range(len(strategy)):
        epsilon.append(strategy.epsilon[view].item())
        steps.append(int(strategy.steps[view].item()))
        step_size.append(strategy.step_size[view].item())
    device = strategy.steps.device
    return AttackStrategy(
        torch.tensor(epsilon, device=device), torch.tensor(steps, device=device), torch.tensor(step_size, device=device)
    )
