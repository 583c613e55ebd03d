"""The folded copy computes what the network computes in eval mode."""

import pytest
import torch
from random_weights import fill_deterministically

from astra_env.attacks import contrastive_attack
from astra_env.errors import InputError
from astra_env.models import target_resnet18
from astra_env.models.folded import FoldedTarget
from astra_env.strategy import AttackStrategy


def small(**kwargs):
    return fill_deterministically(target_resnet18(width=8, feature_dim=16, hidden_dim=32, **kwargs)).eval()


@pytest.mark.parametrize("norm", ["branch", "single"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("branch", ["clean", "adv"])
def test_folding_changes_no_feature(norm, stem, branch):
    network = small(norm=norm, stem=stem)
    views = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = network(views, branch=branch)
    torch.testing.assert_close(FoldedTarget(network, branch)(views), expected, rtol=1e-3, atol=1e-4)
    if norm == "branch":
        other = "adv" if branch == "clean" else "clean"
        assert not torch.allclose(FoldedTarget(network, other)(views), expected, rtol=1e-2)


def test_an_attack_on_the_folded_copy_is_the_attack_on_the_network():
    network = small().double()
    views = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    strategy, start = AttackStrategy.constant(4, steps=3), torch.zeros_like(views)
    plain = contrastive_attack(network, views, strategy, init=start)
    folded = contrastive_attack(
        network, views, strategy, init=start, forward=FoldedTarget(network, "adv", torch.float64)
    )
    assert ((plain.adversarial - folded.adversarial).abs() < 1e-9).double().mean() > 0.999


def test_group_norm_cannot_be_folded():
    with pytest.raises(InputError, match=r"learner.fold_batchnorm: needs target.norm"):
        FoldedTarget(target_resnet18(width=8, norm="group"), "adv")
