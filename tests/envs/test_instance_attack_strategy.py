from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from tiny_envs import make_vector

import agents
from agents import Context
from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig
from astra_env.envs import InstanceAttackStrategyVectorEnv, play
from astra_env.errors import ConfigError, InputError
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.learner.protocol import interact


def actions_for(env: Any, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, env.space.sizes, (env.num_envs, 3))


def test_spaces_belong_together() -> None:
    env = make_vector(8)
    assert env.num_envs == 8
    assert env.single_observation_space == gym.spaces.Box(0, 255, (3, 8, 8), np.uint8)
    assert env.single_action_space == gym.spaces.MultiDiscrete([3, 3, 2])
    assert env.observation_space == batch_space(env.single_observation_space, 8)
    assert env.action_space == batch_space(env.single_action_space, 8)
    assert isinstance(env.metadata["autoreset_mode"], AutoresetMode)
    assert env.spec.id == "astra_env/InstanceAttackStrategy-v0"


@pytest.mark.parametrize("num_envs", [1, 2, 7, 0, -4])
def test_num_envs_must_be_even_and_at_least_four(num_envs: int) -> None:
    with pytest.raises(ConfigError, match="num_envs: expected an even integer >= 4"):
        make_vector(num_envs)


def test_steps_return_the_promised_types_in_fresh_buffers() -> None:
    env = make_vector()
    observation, info = env.reset(seed=0)
    kept = [observation]
    assert info["step"].tolist() == [0] * 8
    for _ in range(3):
        before = [array.copy() for array in kept]
        observation, rewards, terminated, truncated, info = env.step(actions_for(env))
        assert observation in env.observation_space
        assert rewards.shape == terminated.shape == truncated.shape == (8,)
        assert (rewards.dtype, terminated.dtype, truncated.dtype) == (np.float64, np.bool_, np.bool_)
        assert all(not np.shares_memory(observation, old) for old in kept)
        assert all(np.array_equal(old, copy) for old, copy in zip(kept, before, strict=True))
        assert all(info[f"_{name}"].all() for name in info if not name.startswith("_"))
        kept.append(observation)


def test_observation_is_the_minibatch_that_is_trained_on_next() -> None:
    env = make_vector()
    observation, _ = env.reset(seed=3)
    assert np.array_equal(observation, (env.learner.views() * 255).round().numpy().astype(np.uint8))
    following = env.step(actions_for(env))[0]
    assert np.array_equal(following, env.learner.observation().numpy())
    assert not np.array_equal(following, observation)


def test_every_view_gets_its_own_attack_and_reward() -> None:
    env = make_vector()
    env.reset(seed=0)
    actions = np.tile([0, 0, 0], (8, 1))
    actions[3] = [2, 2, 1]
    rewards, info = env.step(actions)[1], env.step(actions)[4]
    assert len(set(rewards)) == 8
    assert info["steps"].tolist() == [1, 1, 1, 3, 1, 1, 1, 1]
    assert np.allclose(info["epsilon"] * 255, [4, 4, 4, 16, 4, 4, 4, 4])
    assert not env.shared_reward


def test_published_reward_is_shared() -> None:
    env = make_vector(learner__reward="astra")
    env.reset(seed=0)
    rewards = env.step(actions_for(env))[1]
    assert len(set(rewards)) == 1
    assert env.shared_reward


@pytest.mark.parametrize("name", ["astra", "per_view", "vs_fixed", "cost_aware", "constant"])
def test_info_holds_the_terms_that_a_reward_is_made_of(name: str) -> None:
    env = make_vector(learner__reward=name)
    env.reset(seed=0)
    _, rewards, _, _, info = env.step(actions_for(env))
    adv, clean, steps = (info[term][0] for term in ("reward_adv_loss", "reward_clean_loss", "mean_steps"))
    expected = {
        "astra": (adv - clean) / 3,
        "per_view": (adv - clean) / 3,
        "cost_aware": (adv - clean) / 3 - 0.004 * steps,
        "constant": 1.0,
    }
    if name == "vs_fixed":
        expected[name] = (adv - info["reward_reference_loss"][0]) / 3
    assert rewards.mean() == pytest.approx(expected[name], abs=1e-6)
    assert info["reward_reference_loss"].any() == (name == "vs_fixed")


def test_a_strong_attack_is_rewarded_above_none_and_above_a_weaker_fixed_one() -> None:
    strong = np.tile([2, 2, 1], (32, 1))
    rewards = {}
    for name in ("astra", "vs_fixed", "cost_aware"):
        arguments = {"cost": 100.0} if name == "cost_aware" else {}
        if name == "vs_fixed":
            arguments = {"epsilon": 1 / 255, "steps": 1, "step_size": 1 / 255}
        env = make_vector(32, learner__reward=name, learner__reward_args=arguments)
        env.reset(seed=0)
        rewards[name] = np.mean([env.step(strong)[1].mean() for _ in range(6)])
    assert rewards["astra"] > 0
    assert rewards["vs_fixed"] > 0
    assert rewards["cost_aware"] < -250


def test_same_step_autoreset_keeps_the_end_in_final_obs_and_final_info() -> None:
    env = make_vector(learner__total_steps=2)
    env.reset(seed=0)
    _, _, terminated, _, info = env.step(actions_for(env))
    assert not terminated.any()
    assert "final_obs" not in info
    observation, rewards, terminated, truncated, info = env.step(actions_for(env))
    assert terminated.all()
    assert not truncated.any()
    assert env.learner.step_count == 0
    assert info["_final_obs"].all()
    assert info["final_obs"].dtype == object
    assert all(final in env.single_observation_space for final in info["final_obs"])
    assert not np.array_equal(np.stack(info["final_obs"]), observation)
    assert info["final_info"]["step"].tolist() == [2] * 8
    assert info["final_info"]["mean_reward"][0] == pytest.approx(rewards.mean(), rel=1e-5)
    assert info["step"].tolist() == [0] * 8


@pytest.mark.parametrize("mode", ["next_step", "NextStep", AutoresetMode.NEXT_STEP])
def test_next_step_autoreset_ignores_one_step(mode: Any) -> None:
    env = make_vector(arguments={"autoreset_mode": mode}, learner__total_steps=1)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    env.reset(seed=0)
    observation, _, terminated, _, info = env.step(actions_for(env))
    assert terminated.all()
    assert "final_obs" not in info
    assert env.learner.step_count == 1
    following, rewards, terminated, truncated, _ = env.step(actions_for(env))
    assert not rewards.any()
    assert not (terminated | truncated).any()
    assert env.learner.step_count == 0
    assert not np.array_equal(observation, following)


def test_unknown_autoreset_modes_are_refused() -> None:
    with pytest.raises(ConfigError, match="autoreset_mode"):
        make_vector(arguments={"autoreset_mode": "sometimes"})
    with pytest.raises(ConfigError, match=r"env\.autoreset_mode"):
        make_vector(env__autoreset_mode="sometimes")


def test_episode_limit_truncates() -> None:
    env = make_vector(arguments={"max_episode_steps": 2})
    env.reset(seed=0)
    env.step(actions_for(env))
    _, _, terminated, truncated, info = env.step(actions_for(env))
    assert truncated.all()
    assert not terminated.any()
    assert info["final_info"]["step"][0] == 2
    assert not env.step(actions_for(env))[3].any()


def test_seeding_repeats_everything() -> None:
    runs = []
    for seed in (4, 4, 5):
        env = make_vector(learner__total_steps=3)
        env.reset(seed=seed)
        steps = [env.step(actions_for(env, number)) for number in range(5)]  # passes an autoreset
        runs.append((np.stack([step[0] for step in steps]), np.stack([step[1] for step in steps])))
    assert np.array_equal(runs[0][0], runs[1][0])
    assert np.array_equal(runs[0][1], runs[1][1])
    assert not np.array_equal(runs[0][0], runs[2][0])
    assert not np.array_equal(runs[0][1], runs[2][1])


def test_divergence_ends_all_views_with_the_penalty() -> None:
    env = make_vector(env__divergence_penalty=-2.0)
    env.reset(seed=0)
    with torch.no_grad():
        next(env.learner.target.parameters()).fill_(float("nan"))
    observation, rewards, terminated, _, info = env.step(actions_for(env))
    assert rewards.tolist() == [-2.0] * 8
    assert terminated.all()
    assert info["final_info"]["diverged"].tolist() == [True] * 8
    assert not info["diverged"].any()
    assert observation in env.observation_space
    assert np.isfinite(env.step(actions_for(env))[1]).all()


@pytest.mark.parametrize(
    "actions", [np.zeros((7, 3), int), np.zeros((8, 3)), np.full((8, 3), 9), np.zeros(3, int), np.full((8, 3), -1)]
)
def test_invalid_actions_are_refused(actions: np.ndarray) -> None:
    env = make_vector()
    env.reset(seed=0)
    with pytest.raises(InputError, match="actions"):
        env.step(actions)


def test_stepping_before_reset_is_refused() -> None:
    env = make_vector()
    with pytest.raises(gym.error.ResetNeeded):
        env.step(actions_for(env))


def test_views_are_reset_together_or_not_at_all() -> None:
    env = make_vector()
    env.reset(seed=0, options={"reset_mask": np.ones(8, dtype=bool)})
    with pytest.raises(InputError, match="reset_mask"):
        env.reset(options={"reset_mask": np.arange(8) < 4})


def test_gymnasium_wrappers_work_around_it() -> None:
    env = gym.wrappers.vector.RecordEpisodeStatistics(make_vector(learner__total_steps=2))
    env.reset(seed=0)
    first = env.step(actions_for(env.unwrapped))[1]
    _, second, _, _, info = env.step(actions_for(env.unwrapped))
    assert np.allclose(info["episode"]["r"], first + second)
    assert info["episode"]["l"].tolist() == [2] * 8


def test_rendering_gives_one_frame_per_view() -> None:
    env = make_vector(arguments={"render_mode": "ansi"})
    env.reset(seed=0)
    env.step(actions_for(env))
    lines = env.render()
    assert len(lines) == 8
    assert lines[0].startswith("step 1/12")


@pytest.mark.parametrize(
    ("preset", "reward"), [("paper", "astra"), ("improved", "per_view"), ("improved", "astra"), ("paper", "per_view")]
)
def test_reinforce_learns_bit_for_bit_the_same_as_in_the_training_script(preset: str, reward: str) -> None:
    """``interact`` is the loop body of the training script; the environment must be the same world."""
    overrides = {"learner.reward": reward, "learner.batch_size": 8, "seed": 9}
    config = load_config(ExperimentConfig, "tiny", overrides)
    learner = ContrastiveLearner(config)
    context = Context(learner.space, seed=9, total_steps=learner.total_steps, warmup_steps=learner.warmup_steps)

    def policy() -> Any:
        small = {"width": 4, "blocks": (1, 1, 1, 1), "update_every": 2}
        return agents.make("reinforce", context=context, preset=preset, **small)

    scripted, lived = policy(), policy()
    while not learner.finished:
        interact(learner, scripted)
    env = InstanceAttackStrategyVectorEnv(16, "tiny", overrides, autoreset_mode="next_step")
    result = play(env, lived, learn=True)
    assert len(result.rewards) == learner.total_steps
    assert lived.updates == scripted.updates == 6
    for name, value in learner.target.state_dict().items():
        assert torch.equal(env.learner.target.state_dict()[name], value), name
    for name, value in scripted.network.state_dict().items():
        assert torch.equal(lived.network.state_dict()[name], value), name
