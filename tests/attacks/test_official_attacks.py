"""The attacks of the official codes, met on any CPU.

On a network of random weights a signed attack is chaotic: where a gradient is tiny, rounding decides its sign, and the
next steps follow. So pixels are compared in float64, with a plain loop; with the official float32 numbers, what is
compared is the loss that the attack reaches, and single steps from places that are given.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from masked_attack import masked_attack
from random_weights import fill_deterministically
from torch import Tensor, nn

from astra_env.attacks import contrastive_pgd, supervised_pgd
from astra_env.losses import nt_xent
from astra_env.models import preact_resnet18, target_resnet18
from astra_env.strategy import Attack, AttackStrategy

CASES = ("contrastive-clean", "contrastive-adv", "supervised-linf", "supervised-l2")


@dataclass(frozen=True)
class Case:
    """One official attack: what it attacks, from where, how, and where it ends."""

    build: Callable[[], nn.Module]
    images: Tensor
    start: Tensor
    strategy: AttackStrategy
    norm: str
    official: Tensor
    loss: Callable[[nn.Module, Tensor], Tensor]
    ours: Callable[..., Tensor]

    def network(self, dtype: torch.dtype) -> nn.Module:
        return fill_deterministically(self.build()).to(dtype).eval()

    def one_step(self, start: Tensor) -> "Case":
        strategy = replace(self.strategy, steps=torch.ones_like(self.strategy.steps))
        return replace(self, strategy=strategy, start=start)

    def by_engine(self, dtype: torch.dtype) -> Tensor:
        return self.ours(self.network(dtype), self.images.to(dtype), self.strategy, self.start.to(dtype))

    def by_loop(self, dtype: torch.dtype = torch.float64) -> Tensor:
        network = self.network(dtype)
        images, start = self.images.to(dtype), self.start.to(dtype)
        return masked_attack(lambda x: self.loss(network, x), images, self.strategy, start, self.norm)

    @torch.no_grad()
    def loss_at(self, adversarial: Tensor) -> float:
        """The loss of adversarial images, in float64."""
        return float(self.loss(self.network(torch.float64), adversarial.double()))


def contrastive(golden, branch):
    def attack(network, images, strategy, start):
        return contrastive_pgd(network, images, strategy, branch=branch, init=start)

    strategy = AttackStrategy(
        golden["attack_epsilon_255"].float() / 255,
        golden["attack_iterations"],
        golden["attack_step_size_255"].float() / 255,
    )
    return Case(
        build=target_resnet18,
        images=golden["images"],
        start=golden["attack_delta0"],
        strategy=strategy,
        norm="linf",
        official=golden["attack_adv_bn_normal" if branch == "clean" else "attack_adv_bn_pgd"],
        loss=lambda network, images: nt_xent(network(images, branch=branch)),
        ours=attack,
    )


def supervised(golden, norm):
    epsilon, step_size = (8 / 255, 2 / 255) if norm == "linf" else (128 / 255, 15 / 255)
    images, labels = golden["images"], golden["pgd_labels"]

    def attack(network, images, strategy, start):
        steps = int(strategy.steps[0])
        return supervised_pgd(
            network, images, labels, epsilon=epsilon, step_size=step_size, steps=steps, norm=norm, init=start
        )

    return Case(
        build=preact_resnet18,
        images=images,
        start=golden["pgd_linf_delta0"] if norm == "linf" else torch.zeros_like(images),
        strategy=Attack(epsilon, step_size, 5, norm).strategy(len(images)),
        norm=norm,
        official=golden["pgd_linf_adv_eps8_step2_it5" if norm == "linf" else "pgd_l2_adv_eps128_step15_it5"],
        loss=lambda network, images: F.cross_entropy(network(images), labels),
        ours=attack,
    )


@pytest.fixture(params=CASES)
def case(request, golden_astra, golden_rpat):
    kind, _, variant = request.param.partition("-")
    return contrastive(golden_astra, variant) if kind == "contrastive" else supervised(golden_rpat, variant)


def equal_pixels(first, second, tolerance):
    return ((first.double() - second.double()).abs() < tolerance).double().mean().item()


def test_pixels_in_float64_are_those_of_the_masked_loop(case):
    assert equal_pixels(case.by_engine(torch.float64), case.by_loop(), 1e-9) >= 0.999


def test_loss_reached_is_the_official_one(case):
    assert case.loss_at(case.by_engine(torch.float32)) == pytest.approx(case.loss_at(case.official), rel=5e-4)
    assert case.loss_at(case.official) > 1.01 * case.loss_at(case.images)  # there is something to reach


@pytest.mark.parametrize("place", ["its start", "the official end"])
def test_single_step_in_float32_is_that_of_the_masked_loop_in_float64(case, place):
    step = case.one_step(case.start if place == "its start" else case.official - case.images)
    assert equal_pixels(step.by_engine(torch.float32), step.by_loop(), 1e-5) >= 0.99


def test_pixels_are_the_official_ones_where_the_trajectory_is_not_chaotic(golden_astra):
    case = contrastive(golden_astra, "clean")
    assert equal_pixels(case.by_engine(torch.float64), case.official, 1e-6) >= 0.99
