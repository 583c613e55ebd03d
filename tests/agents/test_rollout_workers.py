"""Stable-Baselines3's rollout workers: two copies of the batch environment, each in a process of its own."""

from functools import partial

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor

from agents import sb3
from agents.sb3.config import AgentConfig

CONFIG = AgentConfig(
    env="attack_strategy",
    experiment="tiny",
    overrides={"learner.total_steps": 6},
    num_envs=2,
    device="cpu",
    hyperparameters={"n_steps": 4},
)


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_copies_in_processes_are_what_they_are_in_one(start_method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the workers': threads of several processes wait for each other's cores
    copies = [partial(sb3.make_single_env, CONFIG)] * 2
    beside = DummyVecEnv(copies)
    env = VecMonitor(SubprocVecEnv(copies, start_method=start_method))
    try:
        env.seed(3), beside.seed(3)
        np.testing.assert_array_equal(env.reset(), beside.reset())
        for actions in ([[0, 1, 0], [2, 2, 1]], [[1, 0, 1], [2, 1, 0]], [[2, 2, 1], [0, 0, 0]]):
            found, expected = env.step(np.array(actions)), beside.step(np.array(actions))
            for value, wanted in zip(found[:3], expected[:3], strict=True):
                np.testing.assert_allclose(value, wanted, rtol=1e-5)
        assert found[2].all()
        assert found[3][0]["terminal_observation"].shape == env.observation_space.shape
        assert abs(found[1][0] - found[1][1]) > 0
        model = sb3.make_model("ppo", env, CONFIG)
        model.learn(16)
        assert model.num_timesteps == 16
        assert env.env_method("state_dict")[1]["env"] == "AttackStrategyEnv"
    finally:
        env.close()
