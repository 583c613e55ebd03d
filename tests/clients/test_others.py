"""Clients that are installed in environments of their own (`make clients`); each is skipped where it is not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from client_envs import LENGTH, rewards_of, single, vector


def test_torchrl_collects_two_episodes_of_the_single_id() -> None:
    envs = pytest.importorskip("torchrl.envs")
    env = envs.TransformedEnv(envs.GymWrapper(single()), envs.RewardSum())
    env.auto_register_info_dict()
    env.set_seed(5)
    found = env.rollout(2 * LENGTH, break_when_any_done=False)
    assert found["next", "done"].flatten().tolist() == [False, False, True] * 2
    assert found["next", "step"].flatten().tolist() == [1, 2, 3] * 2
    assert found["next", "reward"].shape == (2 * LENGTH, 1)


def test_torchrls_collector_trains_although_it_steps_without_gradients() -> None:
    envs, collectors = pytest.importorskip("torchrl.envs"), pytest.importorskip("torchrl.collectors")

    def policy(data: Any) -> Any:
        action = torch.zeros(3, dtype=torch.int64)
        return data.set("action", action)

    env = envs.GymWrapper(single(), categorical_action_encoding=True)
    collector_class = getattr(collectors, "Collector", None) or collectors.SyncDataCollector
    collector = collector_class(env, policy, frames_per_batch=2 * LENGTH, total_frames=2 * LENGTH, trust_policy=True)
    ends = [data["next", "done"].flatten().tolist() for data in collector]
    assert ends == [[False, False, True] * 2]
    collector.shutdown()


@pytest.mark.parametrize("mode", ["same_step", "disabled"])
def test_torchrl_takes_the_vector_id(mode: str) -> None:
    envs = pytest.importorskip("torchrl.envs")
    env = envs.GymWrapper(vector(mode))
    env.set_seed(0)
    found = env.rollout(2 * LENGTH, break_when_any_done=False)
    assert found.batch_size == (4, 2 * LENGTH)
    assert found["next", "done"].squeeze(-1)[0].tolist() == [False, False, True] * 2


def test_skrl_steps_over_two_ends_without_gradients() -> None:
    wrappers = pytest.importorskip("skrl.envs.wrappers.torch")
    env = wrappers.wrap_env(vector("next_step"), wrapper="gymnasium", verbose=False)
    env.reset()
    ends, rewards = [], []
    with torch.no_grad():
        for _ in range(8):
            _, reward, terminated, truncated, _ = env.step(torch.zeros(4, 3, dtype=torch.int64))
            ends.append(bool((terminated | truncated).all()))
            rewards.append(reward)
    assert ends == [False, False, True, False] * 2
    assert torch.stack(rewards)[[0, 1, 2, 4, 5, 6]].isfinite().all()


def test_minari_records_two_episodes_with_their_information(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    env = minari.DataCollector(single(), record_infos=True)
    for seed in (5, 6):
        env.reset(seed=seed)
        over = False
        while not over:
            _, _, terminated, truncated, _ = env.step(np.zeros(3, dtype=np.int64))
            over = terminated or truncated
    told = {"algorithm_name": "fixed", "author": "x", "author_email": "x@y", "code_permalink": "x"}
    dataset = env.create_dataset("astra/two-v0", **told)
    episodes = list(dataset.iterate_episodes())
    assert [len(episode.rewards) for episode in episodes] == [LENGTH] * 2
    assert np.allclose(episodes[0].rewards, rewards_of(5, 1)[0][0])
    assert [episode.terminations.tolist() for episode in episodes] == [[False, False, True]] * 2
    assert all(episode.infos["step"].tolist() == [0, 1, 2, 3] for episode in episodes)


def test_tianshou_collects_two_episodes() -> None:
    env = pytest.importorskip("tianshou.env")
    envs = env.DummyVectorEnv([single])
    envs.seed(5)
    envs.reset(seed=5)
    lengths, count = [], 0
    for _ in range(2 * LENGTH):
        _, _, terminated, truncated, _ = envs.step(np.zeros((1, 3), dtype=np.int64))
        count += 1
        if (terminated | truncated)[0]:
            lengths.append(count)
            count = 0
            envs.reset([0])
    assert lengths == [LENGTH] * 2


def test_rllib_records_episodes_of_three() -> None:
    """RLlib assumes next-step autoreset in vector environments; given copies of the single id, it makes its own."""
    ppo = pytest.importorskip("ray.rllib.algorithms.ppo")
    import ray
    from ray.tune.registry import register_env

    register_env("attack", lambda _: single())
    config = ppo.PPOConfig().environment("attack").env_runners(num_env_runners=0)
    config = config.training(train_batch_size=12, minibatch_size=6, num_epochs=1).framework("torch")
    algorithm = config.build_algo()
    result = algorithm.train()
    assert result["env_runners"]["episode_len_mean"] == LENGTH
    algorithm.stop()
    ray.shutdown()


def test_sbx_trains_over_two_ends() -> None:
    sbx = pytest.importorskip("sbx")
    model = sbx.PPO("MlpPolicy", single(), n_steps=6, batch_size=6, n_epochs=1)
    model.learn(12)
    assert [entry["l"] for entry in model.ep_info_buffer] == [LENGTH] * 4


def test_omegaconf_configurations_are_taken() -> None:
    omegaconf = pytest.importorskip("omegaconf")
    conf = omegaconf.OmegaConf.create({"strategy": {"steps": [1, 2]}, "learner": {"total_steps": 3}})
    import gymnasium as gym

    env = gym.make("astra_env/AttackStrategy-v0", config="tiny", overrides=conf)
    assert env.action_space.nvec.tolist() == [3, 2, 2]
    env.spec.to_json()


def test_pufferlib_steps_over_two_ends() -> None:
    emulation = pytest.importorskip("pufferlib.emulation")
    env = emulation.GymnasiumPufferEnv(env_creator=single)
    env.reset(seed=5)
    ends = [bool(env.step(np.zeros(3, dtype=np.int64))[2]) for _ in range(LENGTH)]
    assert ends == [False, False, True]
    env.reset()
    assert [bool(env.step(np.zeros(3, dtype=np.int64))[2]) for _ in range(LENGTH)] == ends
