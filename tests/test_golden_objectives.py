"""The self-supervised methods against numbers of their authors' code; in float64, for signs of gradients decide."""

import pytest
import torch.nn.functional as F
from conftest import GOLDEN, _load_golden
from torch import Tensor, nn

from astra_env.attacks import contrastive_attack
from astra_env.strategy import AttackStrategy


class TinyNetwork(nn.Module):
    """The network that the golden attacks were made on: two convolutions, squares, mean and one linear layer."""

    def __init__(self, weights: dict[str, Tensor], prefix: str = "") -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = (nn.Parameter(weights[f"{prefix}w{k}"].double()) for k in (1, 2, 3))

    def embed(self, views: Tensor, branch: str = "adv") -> Tensor:
        hidden = F.silu(F.conv2d(views - 0.5, self.w1, stride=2, padding=1))
        return F.conv2d(hidden, self.w2, stride=2, padding=1).square().mean((2, 3))

    def project(self, embedding: Tensor, branch: str = "adv") -> Tensor:
        return embedding @ self.w3.T

    def forward(self, views: Tensor, branch: str = "adv") -> Tensor:
        return self.project(self.embed(views, branch), branch)


def golden(name: str) -> dict[str, Tensor]:
    return _load_golden(GOLDEN / f"{name}_seed7.npz")


def share_of_equal_pixels(given: Tensor, expected: Tensor) -> float:
    return float(((given - expected).abs() <= 1e-5).double().mean())


@pytest.mark.parametrize(("clip_start", "equal"), [(False, True), (True, False)])
def test_acl_starts_its_attack_outside_the_image_box(clip_start, equal):
    given = golden("acl_attack")
    views, start = given["views"].double(), given["delta0"].double()
    strategy = AttackStrategy.repeated(12, 8 / 255, 5, 2 / 255, views.device)
    attack = contrastive_attack(TinyNetwork(given), views, strategy, init=start, temperature=0.5, clip_start=clip_start)
    assert (share_of_equal_pixels(attack.adversarial, given["adv"]) >= 0.99) is equal
