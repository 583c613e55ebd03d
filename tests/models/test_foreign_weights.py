"""Weights as other code keeps them: behind any prefix, beside heads, averages and unused blocks, or ambiguous."""

import warnings

import pytest
import torch
from random_weights import randomized
from torch import nn

from astra_env.errors import CheckpointError, KeysDiffer
from astra_env.evaluation.campaign.loading import load_network
from astra_env.models import IMAGENET_MEAN, IMAGENET_STD, load_official, preact_resnet18, resnet18, wide_resnet
from astra_env.models.interop import weights_of


def tiny(seed=1):
    return resnet18(5, width=4, generator=torch.Generator().manual_seed(seed))


def prefixed(prefix, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def same(model, state):
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "wrap",
    [
        *(
            lambda state, p=prefix: prefixed(p, state)
            for prefix in ("model.", "net.", "backbone.", "encoder.", "0.", "1.")
        ),
        *(lambda state, p=prefix: prefixed(p, state) for prefix in ("student.", "model_ema.", "module.model.")),
        lambda state: {"state_dict": prefixed("module.net.", state)},
        lambda state: {"model_ema": state},
        lambda state: {"student": prefixed("backbone.", state), "epoch": 3},
        lambda state: {"checkpoint": {"weights": state}, "optimizer": {"momentum": {"a": torch.ones(1)}}},
        lambda state: {"n_averaged": torch.tensor(3), **prefixed("module.", state)},
        lambda state: {**state, "epoch": 3, "best": 0.5},
        lambda state: {**prefixed("encoder.", state), "projector.0.weight": torch.ones(2, 2)},
        lambda state: {"state_dict": {**prefixed("encoder_q.", state), "queue": torch.ones(3)}},
    ],
)
def test_weights_are_found_wherever_they_lie(wrap):
    source = tiny().state_dict()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert same(load_official(tiny(2), wrap(source)), source)
        assert weights_of(wrap(source)).keys() >= source.keys()
    assert len({str(warning.message) for warning in told}) <= 1


def test_what_was_left_aside_is_said_in_one_line():
    source = tiny().state_dict()
    given = {**prefixed("encoder.", source), "projector.0.weight": torch.ones(2), "predictor.weight": torch.ones(1)}
    with pytest.warns(UserWarning, match="weights are those under 'encoder'; left aside: projector, predictor") as told:
        load_official(tiny(2), given)
    assert len(told) == 1


def test_the_block_that_wide_resnets_of_trades_never_call_is_left_aside(tmp_path):
    network = randomized(wide_resnet(16, 1, 7))
    state = network.state_dict()
    unused = {name.replace("block1.", "sub_block1."): torch.ones(1) for name in state if name.startswith("block1.")}
    torch.save(prefixed("module.", {**state, **unused}), tmp_path / "trades.pt")
    with pytest.warns(UserWarning, match="left aside, WideResNet has no sub_block1"):
        assert same(load_network(tmp_path / "trades.pt").network, state)


@pytest.mark.parametrize("name", ["bn1.weight", "head.weight", "normalize.mean", "layer5.0.conv1.weight"])
def test_what_would_compute_something_is_never_left_aside(name):
    model = preact_resnet18(5, width=4)
    with pytest.raises(KeysDiffer, match=r"1 unexpected"):
        load_official(model, {**model.state_dict(), name: torch.ones(4)})


def test_several_networks_are_ambiguous_unless_they_are_the_same_or_one_is_named(tmp_path):
    one, other = tiny(1).state_dict(), tiny(2).state_dict()
    for given in ({"student": one, "teacher": other}, {**prefixed("student.", one), **prefixed("teacher.", other)}):
        with pytest.raises(CheckpointError, match=r"several networks \(student, teacher\); .*--network\.weights NAME"):
            load_official(tiny(3), given)
        torch.save(given, tmp_path / "both.pt")
        assert same(load_network(tmp_path / "both.pt", weights="teacher").network, other)
    with pytest.warns(UserWarning, match="under 'student'"):
        assert same(load_official(tiny(3), {"student": one, "teacher": one}), one)


@pytest.mark.parametrize("layer", ["0.mean 0.std 1.", "mu sigma model.", "norm.mean norm.std net."])
def test_a_normalisation_before_the_network_is_not_lost(tmp_path, layer):
    mean, std, prefix = layer.split()
    network = randomized(resnet18(5, (IMAGENET_MEAN, IMAGENET_STD), width=4)).eval()
    plain = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("normalize.")}
    statistics = {mean: torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), std: torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)}
    torch.save({**statistics, **prefixed(prefix, plain)}, tmp_path / "sequential.pt")
    images = torch.rand(2, 3, 16, 16)
    with pytest.warns(UserWarning, match="weights are those under"):
        assert torch.equal(load_network(tmp_path / "sequential.pt").network(images), network(images))


def test_a_mapping_that_holds_itself_ends():
    endless = {"a": {}}
    endless["a"]["b"] = endless
    with pytest.raises(CheckpointError):
        load_official(nn.Linear(1, 1), endless)
