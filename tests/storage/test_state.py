"""One question for every state: does it fit what it is loaded into?"""

import copy

import pytest
import torch
from torch import nn

from astra_env.errors import CheckpointError
from astra_env.storage.state import Either, load_or_undo, require_state


class Counting:
    """An owner of a state that says nothing of it but what it is."""

    def __init__(self):
        self.names, self.weights = ["a"], {"b": torch.zeros(2)}

    def state_dict(self):
        return {"names": self.names, "weights": self.weights, "seen": 3, "mean": 0.5, "open": True, "none": None}


GOOD = Counting().state_dict()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("weights", "b"), torch.zeros(3), r"mine\.weights\.b: expected float32 \(2,\), got float32 \(3,\)"),
        (("weights", "b"), torch.zeros(2).double(), r"mine\.weights\.b: expected float32 \(2,\), got float64 \(2,\)"),
        (("weights", "b"), torch.tensor([0.0, float("nan")]), r"mine\.weights\.b: holds NaN or infinity"),
        (("weights",), 3, r"mine\.weights: expected a mapping, got int"),
        (("weights", "c"), torch.zeros(2), r"mine\.weights: holds c, which this configuration does not have"),
        (("weights",), {}, r"mine\.weights: 'b' is missing"),
        (("names",), ["a", "b"], r"mine\.names: expected 1 entries, got \['a', 'b'\]"),
        (("names",), [3], r"mine\.names\.0: expected str, got int"),
        (("seen",), -1, r"mine\.seen: expected an integer >= 0, got -1"),
        (("seen",), True, r"mine\.seen: expected an integer >= 0, got True"),
        (("mean",), float("inf"), r"mine\.mean: expected a finite number, got inf"),
        (("open",), 1, r"mine\.open: expected bool, got int"),
        (("none",), 1, r"mine\.none: expected None, got int"),
    ],
)
def test_what_does_not_fit_an_owners_own_state_is_named_with_its_place(path, value, message):
    require_state({**GOOD, "seen": 7, "mean": -2, "names": ["z"]}, Counting(), "mine")
    bad = copy.deepcopy(GOOD)
    parent = bad
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    with pytest.raises(CheckpointError, match=f"^checkpoint: {message}"):
        require_state(bad, Counting(), "mine")


def test_an_owner_whose_states_differ_says_how():
    class Growing(Counting):
        def state_form(self):
            return {**self.state_dict(), "names": list, "weights": Either(self.weights, instead={})}

    require_state({**GOOD, "names": list("abc"), "weights": {}}, Growing())
    with pytest.raises(CheckpointError, match="names: expected list, got str"):
        require_state({**GOOD, "names": "abc"}, Growing())
    with pytest.raises(CheckpointError, match="weights: expected a mapping, got NoneType"):
        require_state({**GOOD, "weights": None}, Growing())


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), torch.optim.Adam])
def test_an_optimisers_buffers_have_its_parameters_shapes_or_do_not_exist_yet(make):
    layer, wider = nn.Linear(2, 2), nn.Linear(3, 2)
    fresh, stepped, other = (make(module.parameters()) for module in (layer, layer, wider))
    for module, optimizer in ((layer, stepped), (wider, other)):
        module(torch.ones(1, module.in_features)).sum().backward()
        optimizer.step()
    for optimizer in (fresh, stepped):
        require_state(fresh.state_dict(), optimizer, "optimizer")
        require_state(stepped.state_dict(), optimizer, "optimizer")
        with pytest.raises(CheckpointError, match=r"optimizer\.state\..*: expected float32 \(2, 2\), got float32"):
            require_state(other.state_dict(), optimizer, "optimizer")


def test_a_generator_takes_its_own_kind_of_state_alone():
    generator = torch.Generator()
    require_state(torch.Generator().manual_seed(3).get_state(), generator, "views")
    with pytest.raises(CheckpointError, match="views: expected uint8"):
        require_state(torch.zeros(3, dtype=torch.uint8), generator, "views")
    with pytest.raises(CheckpointError, match="views: not the state of a generator"):
        require_state(torch.zeros_like(generator.get_state()), generator, "views")


def test_a_state_that_fails_half_way_is_undone():
    layer = nn.Linear(2, 2)
    before = copy.deepcopy(layer.state_dict())

    def take(state):
        layer.weight.data.copy_(state["weight"])
        layer.bias.data.copy_(state["bias"])

    with pytest.raises(CheckpointError, match=r"checkpoint: does not fit this layer \(RuntimeError"):
        load_or_undo({"weight": torch.ones(2, 2), "bias": torch.ones(5)}, layer.state_dict(), take, "this layer")
    assert torch.equal(layer.weight, before["weight"])
