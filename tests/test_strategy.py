"""Attack strategies and the grids they are decoded from."""

import warnings

import numpy as np
import pytest
import torch
from fuzzing import cases
from hypothesis import given, reject
from hypothesis import strategies as st

from astra_env.errors import ConfigError, InputError
from astra_env.strategy import AttackStrategy, StrategySpace


def test_default_grids_are_the_papers():
    space = StrategySpace()
    assert space.sizes == (13, 12, 5)
    assert [round(value * 255) for value in space.epsilon] == list(range(3, 16))
    assert space.steps == tuple(range(3, 15))
    assert [round(value * 255) for value in space.step_size] == [1, 2, 3, 4, 5]


@cases(100)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 11), st.integers(0, 4)), min_size=1, max_size=20))
def test_decoding_looks_every_action_up_in_its_own_column(actions):
    strategy = StrategySpace().decode(np.array(actions))
    for row, (epsilon, steps, step_size) in enumerate(actions):
        assert strategy.epsilon[row].item() == pytest.approx((epsilon + 3) / 255)
        assert strategy.steps[row].item() == steps + 3
        assert strategy.step_size[row].item() == pytest.approx((step_size + 1) / 255)


def test_one_action_decodes_to_one_attack():
    strategy = StrategySpace().decode([5, 2, 1])
    assert len(strategy) == 1
    assert strategy.steps.tolist() == [5]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_every_integer_dtype_decodes_alike(dtype):
    strategy = StrategySpace().decode(torch.tensor([[12, 11, 4]], dtype=dtype))
    assert strategy.steps.tolist() == [14]


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([[13, 0, 0]], r"actions\[:, 0\] \(epsilon\): expected indices 0..12, got 13"),
        ([[0, -1, 0]], r"actions\[:, 1\] \(steps\): expected indices 0..11, got -1"),
        ([[0, 0, 5]], r"actions\[:, 2\] \(step_size\)"),
        ([[0.5, 0.0, 0.0]], "expected integers"),
        ([[0, 0]], r"expected integers of shape \(N, 3\) or \(3,\), got shape \(1, 2\)"),
        ([[[0, 0, 0]]], r"got shape \(1, 1, 3\)"),
        ([[True, False, True]], "expected integers"),
    ],
)
def test_actions_outside_the_grids_are_refused(actions, message):
    with pytest.raises(InputError, match=message):
        StrategySpace().decode(np.array(actions))


SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
NUMBERS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-2, 14), st.floats(), st.booleans())
DTYPES = st.sampled_from(["int64", "int8", "uint8", "float32", "float64", "bool", "complex64", "object", "U4"])


@cases(150)
@given(data=st.data())
def test_whatever_is_decoded_is_an_attack_of_the_grids_or_a_typed_error(data):
    space, shape = StrategySpace(), data.draw(SHAPES)
    count = int(np.prod(shape, dtype=int))
    values = data.draw(st.lists(NUMBERS, min_size=count, max_size=count))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            actions = np.array(values, dtype=object).astype(data.draw(DTYPES)).reshape(shape)
        except (OverflowError, ValueError, TypeError):
            reject()  # no such array
    given_as = data.draw(st.sampled_from([lambda a: a, np.ndarray.tolist]))
    try:
        strategy = space.decode(given_as(actions))
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017 - an attack is as good an answer
    else:
        assert set(strategy.steps.tolist()) <= set(space.steps)
        assert strategy.epsilon.min() >= 3 / 255 - 1e-6
        assert strategy.epsilon.max() <= 15 / 255 + 1e-6


def test_encode_is_the_inverse_of_decode():
    space = StrategySpace()
    assert space.encode(8 / 255, 5, 2 / 255) == (5, 2, 1)
    with pytest.raises(InputError, match="epsilon: expected a value of the grid"):
        space.encode(1 / 255, 5, 2 / 255)


def test_grids_take_fractions():
    assert StrategySpace(epsilon=["8/255", 0.5]).epsilon == pytest.approx((8 / 255, 0.5))


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        ({"epsilon": []}, "strategy.epsilon: expected a non-empty list"),
        ({"epsilon": [8]}, r"epsilon: expected a number in \[0, 1\] pixel units, got 8; .*'8/255'"),
        ({"step_size": [-0.1]}, "step_size: expected a number in"),
        ({"steps": [-1]}, "strategy.steps: expected integers >= 0"),
        ({"steps": [1.5]}, "strategy.steps: expected integers >= 0"),
        ({"steps": [3, 3]}, "distinct"),
        ({"epsilon": ["x/255"]}, "fraction"),
        ({"epsilon": ["1/0"]}, "fraction"),
    ],
)
def test_bad_grids_are_refused(grids, message):
    with pytest.raises((ConfigError, InputError), match=message):
        StrategySpace(**grids)


def test_strategies_of_mixed_lengths_are_refused():
    with pytest.raises(InputError, match="one shape"):
        AttackStrategy(torch.zeros(2), torch.zeros(3, dtype=torch.int64), torch.zeros(2))
    with pytest.raises(InputError, match="integer"):
        AttackStrategy(torch.zeros(2), torch.zeros(2), torch.zeros(2))
    with pytest.raises(InputError, match="8/255"):
        AttackStrategy.constant(2, epsilon=8)
