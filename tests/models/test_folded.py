"""The folded copy computes what the network computes in eval mode."""

import pytest
import torch
from random_weights import fill_deterministically

from astra_env.attacks import contrastive_attack
from astra_env.errors import InputError
from astra_env.models import NETWORKS, target_resnet18
from astra_env.models.folded import Folded
from astra_env.models.wide_resnet import wide_resnet_channels
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
    torch.testing.assert_close(Folded(network, branch=branch)(views), expected, rtol=1e-3, atol=1e-4)
    if norm == "branch":
        other = "adv" if branch == "clean" else "clean"
        assert not torch.allclose(Folded(network, branch=other)(views), expected, rtol=1e-2)


def test_an_attack_on_the_folded_copy_is_the_attack_on_the_network():
    network = small().double()
    views = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    strategy, start = AttackStrategy.constant(4, steps=3), torch.zeros_like(views)
    plain = contrastive_attack(network, views, strategy, init=start)
    folded = contrastive_attack(
        network, views, strategy, init=start, forward=Folded(network, torch.float64, branch="adv")
    )
    assert ((plain.adversarial - folded.adversarial).abs() < 1e-9).double().mean() > 0.999


def test_group_norm_cannot_be_folded():
    with pytest.raises(InputError, match=r"fold_batchnorm: needs BatchNorms"):
        Folded(target_resnet18(width=8, norm="group"), branch="adv")


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "bottleneck_resnet26"])
def test_every_classifier_folds(name):
    network = fill_deterministically(NETWORKS.get(name)(10, width=4)).eval()
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    folded = Folded(network)
    torch.testing.assert_close(folded(images), network(images), rtol=1e-3, atol=1e-4)
    kept = [module for module in folded.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(kept) == (9 if name == "preact_resnet18" else 0)


def test_a_layer_whose_output_goes_elsewhere_too_keeps_its_norm():
    network = fill_deterministically(wide_resnet_channels(10, 4)).eval()
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Folded(network)(images), network(images), rtol=1e-3, atol=1e-4)


def test_refresh_follows_the_network_in_place():
    network = small()
    views = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    folded = Folded(network, branch="adv")
    places = [buffer.data_ptr() for buffer in folded.buffers()]
    before = folded(views)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
    network.train()(views, branch="adv")
    network.eval()
    assert torch.equal(folded(views), before)
    torch.testing.assert_close(folded.refresh()(views), network(views, branch="adv"), rtol=1e-3, atol=1e-4)
    assert [buffer.data_ptr() for buffer in folded.buffers()] == places


def test_folding_leaves_the_network_alone():
    network = small()
    state, modules = {name: value.clone() for name, value in network.state_dict().items()}, list(network.modules())
    network.train()
    folded = Folded(network, torch.bfloat16, branch="adv")
    assert folded(torch.rand(4, 3, 16, 16)).dtype == torch.bfloat16
    assert network.training
    assert list(network.modules()) == modules
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert not any(buffer.requires_grad for buffer in folded.buffers())
    assert vars(network).keys() == vars(small()).keys()


def test_what_cannot_be_traced_is_named():
    class Branching(torch.nn.Module):
        def forward(self, images):
            return images if images.sum() > 0 else -images

    with pytest.raises(InputError, match=r"fold_batchnorm: torch.fx cannot trace Branching"):
        Folded(Branching())
