"""The strategy network's heads and the supervised networks by name."""

import pytest
import torch
from torch import nn

from astra_env.errors import ConfigError, InputError
from astra_env.models import NETWORKS, preact_resnet18, resnet18, strategy_resnet18, wide_resnet

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 4, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=seeded(9))


@pytest.mark.parametrize("grid_sizes", [(13, 12, 5), (1, 2, 3), (4,), (2, 3), (2, 3, 4, 5)])
def test_strategy_has_one_head_of_each_size_in_order(grid_sizes):
    strategy = strategy_resnet18(grid_sizes=grid_sizes, width=8, generator=seeded())
    assert tuple(logits.shape for logits in strategy(images())) == tuple((4, size) for size in grid_sizes)
    assert strategy.grid_sizes == grid_sizes


def test_zero_initialised_heads_start_uniform_and_can_learn():
    strategy = strategy_resnet18(width=8, zero_init_heads=True, generator=seeded())
    logits = strategy(images())
    assert all(bool((head == 0).all()) for head in logits)
    logits[0][:, 0].sum().backward()
    assert strategy.heads[0].weight.grad[0].abs().sum() > 0


def test_group_norm_strategy_decides_alike_in_training_and_evaluation_mode():
    strategy = strategy_resnet18(width=16, norm="group", generator=seeded())
    trained, evaluated = strategy.train()(images()), strategy.eval()(images())
    assert all(torch.equal(one, other) for one, other in zip(trained, evaluated, strict=True))
    assert not list(strategy.buffers())


@pytest.mark.parametrize(("field", "value"), [("grid_sizes", ()), ("grid_sizes", (3, 0)), ("norm", "branch")])
def test_impossible_strategy_networks_are_refused_by_name(field, value):
    with pytest.raises(InputError, match=f"^{field}: expected"):
        strategy_resnet18(**{field: value})


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "wrn_28_10", "wrn_34_10", "bottleneck_resnet26"])
def test_every_named_network_scales_normalises_and_separates_features_from_logits(name):
    before = torch.get_rng_state()
    network = NETWORKS.get(name)(7, normalize=(MEAN, STD), width=8, generator=seeded()).eval()
    plain = NETWORKS.get(name)(7, width=8, generator=seeded()).eval()
    assert torch.equal(before, torch.get_rng_state())
    features = network.embed(images())
    assert features.shape == (4, network.embed_dim)
    assert torch.equal(network(images()), network.linear(features))
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    torch.testing.assert_close(network(images()), plain((images() - mean) / std))


def test_networks_are_as_deep_as_their_names_say():
    def weights(network: nn.Module) -> int:
        layers = (m for n, m in network.named_modules() if "hortcut" not in n and isinstance(m, nn.Conv2d | nn.Linear))
        return sum(1 for _ in layers)

    depth = {"resnet18": 18, "preact_resnet18": 18, "bottleneck_resnet26": 26, "wrn_28_10": 26, "wrn_34_10": 32}
    # The WideResNet paper counts two convolutions on skip connections as layers too.
    assert {name: weights(NETWORKS.get(name)(width=4)) for name in depth} == depth


def test_full_width_parameter_counts_are_the_known_ones():
    def millions(network: nn.Module) -> float:
        return round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 2)

    assert millions(resnet18()) == 11.17
    assert millions(NETWORKS.get("wrn_28_10")()) == 36.48


def test_wide_resnet_width_is_the_widening_factor():
    assert wide_resnet(10, 2, generator=seeded()).embed_dim == 4 * 16 * 2


def test_wide_resnet_of_the_stem_width_has_an_identity_skip_in_its_first_block():
    network = wide_resnet(10, 1, generator=seeded()).eval()
    block = network.block1.layer[0]
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(1, 16, 4, 4, generator=seeded())
    assert torch.equal(block(x), x)


def test_preact_variants_differ_in_where_the_skip_connection_starts():
    x = torch.randn(1, 4, 4, 4, generator=seeded())
    for variant, expected in (("standard", x), ("benchmark", (x / (1 + 1e-5) ** 0.5).relu())):
        block = preact_resnet18(width=4, variant=variant, generator=seeded()).eval().layer1[0]
        nn.init.zeros_(block.conv2.weight)
        torch.testing.assert_close(block(x), expected)


def test_training_step_reaches_every_parameter_of_every_network():
    for name in NETWORKS:
        network = NETWORKS.get(name)(3, width=4, generator=seeded())
        nn.functional.cross_entropy(network(images()), torch.tensor([0, 1, 2, 0])).backward()
        assert all(parameter.grad is not None for parameter in network.parameters()), name


def test_unknown_network_and_impossible_sizes_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"network: expected one of .*preact_resnet18.*got 'resnet19'"):
        NETWORKS.get("resnet19")
    with pytest.raises(InputError, match=r"^depth: expected 6n \+ 4 .*got 30"):
        wide_resnet(30, 10)
    with pytest.raises(InputError, match=r"^num_classes: expected"):
        resnet18(0)
    with pytest.raises(InputError, match=r"^variant: expected one of 'standard', 'benchmark', got 'v2'"):
        preact_resnet18(variant="v2")
