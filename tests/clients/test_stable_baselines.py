"""Stable-Baselines3, sb3-contrib, Optuna and a training loop in one file, as CleanRL writes them."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from client_envs import LENGTH, SHORT, SINGLE, rewards_of, single

from agents import sb3
from agents.sb3 import AgentConfig

stable_baselines3 = pytest.importorskip("stable_baselines3")
vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
monitor = pytest.importorskip("stable_baselines3.common.monitor")


def test_dummy_vec_env_reports_lengths_returns_and_terminal_observations_of_two_episodes() -> None:
    envs = vec_env.DummyVecEnv([lambda: monitor.Monitor(single())])
    envs.seed(5)
    envs.reset()
    episodes, terminal = [], []
    for _ in range(2 * LENGTH):
        _, _, dones, infos = envs.step(np.zeros((1, 3), dtype=np.int64))
        if dones[0]:
            episodes.append(infos[0]["episode"])
            terminal.append(infos[0]["terminal_observation"])
            assert not infos[0]["TimeLimit.truncated"]
    rewards, last = rewards_of(5)
    assert [entry["l"] for entry in episodes] == [LENGTH] * 2
    assert [entry["r"] for entry in episodes] == pytest.approx([sum(entry) for entry in rewards], abs=1e-5)
    assert all(np.array_equal(seen, sight) for seen, sight in zip(terminal, last, strict=True))


@pytest.mark.parametrize("algo", ["ppo", "recurrent_ppo"])
def test_agents_train_on_views_over_two_ends(algo: str) -> None:
    if algo == "recurrent_ppo":
        pytest.importorskip("sb3_contrib")
    config = AgentConfig(experiment="tiny", overrides=SHORT, num_envs=4, algo=algo, width=4, blocks=(1, 1),
                         device="cpu", hyperparameters={"n_steps": 2})  # fmt: skip
    envs = sb3.make_vec_env(config)
    model = sb3.make_model(algo, envs, config)
    model.learn(8 * 4)
    assert [entry["l"] for entry in model.ep_info_buffer] == [LENGTH] * 8


def test_optuna_searches_over_seeded_trainings() -> None:
    optuna = pytest.importorskip("optuna")

    def objective(trial: Any) -> float:
        env = single()
        action = [
            trial.suggest_int(name, 0, int(size) - 1) for name, size in zip("abc", env.action_space.nvec, strict=True)
        ]
        returns = []
        for seed in (0, 1):  # two episodes
            env.reset(seed=seed)
            returns.append(sum(env.step(np.array(action))[1] for _ in range(LENGTH)))
        return float(np.mean(returns))

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=2)
    assert len(study.trials) == 2
    again = objective(optuna.trial.FixedTrial(study.best_params))
    assert again == study.best_value


def test_a_loop_in_one_file_sees_the_ends_as_cleanrl_does() -> None:
    envs = gym.make_vec(SINGLE, num_envs=2, config="tiny", overrides=SHORT)
    envs = gym.wrappers.vector.RecordEpisodeStatistics(envs)
    heads = torch.nn.Linear(16, int(envs.single_action_space.nvec.sum()))
    optimizer = torch.optim.Adam(heads.parameters(), lr=1e-2)
    observation, _ = envs.reset(seed=1)
    lengths: list[int] = []
    for _ in range(8):
        logits = heads(torch.as_tensor(observation)).split(envs.single_action_space.nvec.tolist(), dim=1)
        chosen = [torch.distributions.Categorical(logits=entry) for entry in logits]
        action = torch.stack([entry.sample() for entry in chosen], 1)
        observation, reward, _, _, info = envs.step(action.numpy())
        log_p = sum(entry.log_prob(action[:, column]) for column, entry in enumerate(chosen))
        optimizer.zero_grad()
        (-(log_p * torch.as_tensor(reward)).mean()).backward()
        optimizer.step()
        if "episode" in info:
            lengths += info["episode"]["l"].tolist()
    assert lengths == [LENGTH] * 4
