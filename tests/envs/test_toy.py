"""The toy environment: its optimum is the optimum, its parameters interact, and it is fast."""

import time

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import astra_env  # noqa: F401  (registers the environment)
from astra_env.envs.toy import AttackStrategyToyEnv
from astra_env.errors import ConfigError, InputError

ID = "astra_env/AttackStrategyToy-v0"


def play(env, actions):
    env.reset(seed=0)
    total, over = 0.0, False
    for action in actions:
        _, reward, over, _, _ = env.step(np.array(action))
        total += reward
    return total, over


def test_it_passes_gymnasiums_checker():
    check_env(gym.make(ID).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("budget", [60, 100, 150, 200])
def test_dynamic_programming_equals_brute_force(budget):
    env = AttackStrategyToyEnv(budget)
    # Actions that cost and teach the same are one action.
    kinds = np.unique(np.vstack([env.prices[None], env.gains]), axis=1)

    def best(left, robustness):
        if left <= 0:
            return robustness
        return max(best(left - price, robustness + gains[robustness]) for price, *gains in columns)

    columns = [tuple(int(value) for value in column) for column in kinds.T]
    # Of actions at one price that teach the same so far, all are tried: nothing is remembered between branches.
    assert env.optimum()[0] == pytest.approx(best(budget, 0) / env.LEVELS)


def test_the_optimal_actions_reach_the_optimum():
    env = AttackStrategyToyEnv()
    value, actions = env.optimum()
    total, over = play(env, actions)
    assert over
    assert total == pytest.approx(value)


def test_a_moving_attack_beats_every_fixed_one_and_chance():
    env = AttackStrategyToyEnv()
    value, actions = env.optimum()
    static, action = env.best_static()
    env.reset(seed=0)
    total, over = 0.0, False
    while not over:
        _, reward, over, _, _ = env.step(np.array(action))
        total += reward
    assert total == pytest.approx(static)
    assert value > 1.2 * static
    assert len(set(actions)) >= 4


def test_the_strongest_attack_is_not_the_best_and_the_parameters_interact():
    env = AttackStrategyToyEnv()
    gains = env.gains[0].reshape(env._shape)
    assert gains[-1, -1, -1] < gains.max()
    # Which epsilon is best depends on how many steps there are and how long they are.
    assert len({int(gains[:, steps, size].argmax()) for steps in range(1, 5) for size in range(4)}) > 1


def test_twenty_thousand_steps_a_second():
    env = AttackStrategyToyEnv()
    actions = np.random.default_rng(0).integers(0, env.action_space.nvec, (4000, 3))
    rates = []
    for _ in range(5):
        env.reset(seed=0)
        started = time.perf_counter()
        for action in actions:
            if env.step(action)[2]:
                env.reset()
        rates.append(len(actions) / (time.perf_counter() - started))
    assert max(rates) > 20_000


@pytest.mark.parametrize("budget", [0, -5, 1.5, True])
def test_a_bad_budget_is_named(budget):
    with pytest.raises(ConfigError, match="budget: expected an integer >= 1"):
        AttackStrategyToyEnv(budget)


def test_an_action_outside_the_grids_is_named():
    env = AttackStrategyToyEnv()
    env.reset(seed=0)
    with pytest.raises(InputError, match="action"):
        env.step(np.array([0, 5, 0]))
