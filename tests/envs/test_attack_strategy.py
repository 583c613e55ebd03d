import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tiny_envs import make_single

from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig
from astra_env.envs import BoxStrategy, DiscreteStrategy
from astra_env.envs.observation import BOUNDS
from astra_env.errors import CheckpointError, ConfigError, InputError
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.storage.checkpoint import save_checkpoint

ENTRY = {name: index for index, name in enumerate(BOUNDS)}
ACTION = np.array([1, 2, 0])


def weights(env: Any) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in env.learner.target.state_dict().values()])


def test_one_action_trains_a_chunk_under_that_attack() -> None:
    env = make_single(env__chunk_steps=3)
    env.reset(seed=5)
    _, reward, _, _, info = env.step(ACTION)
    learner = ContrastiveLearner(load_config(ExperimentConfig, "tiny", {"seed": 5}))
    strategy = learner.space.decode(ACTION)
    scalars = [learner.step(strategy).scalars() for _ in range(3)]
    assert torch.equal(weights(env), torch.cat([v.flatten().double() for v in learner.target.state_dict().values()]))
    assert reward == pytest.approx(np.mean([entry["reward"] for entry in scalars]), rel=1e-6)
    assert info["mean_steps"] == learner.space.steps[2]
    assert info["chunk_steps"] == 3
    assert info["clean_loss"] == pytest.approx(np.mean([entry["clean_loss"] for entry in scalars]), rel=1e-6)


def test_every_entry_of_the_observation_is_what_the_docstring_says() -> None:
    env = make_single()
    first, _ = env.reset(seed=0)
    assert first[ENTRY["progress"]] == 0
    assert first[ENTRY["learning_rate"]] == 1  # tiny has no warm-up
    assert not first[2:].any()
    observation, reward, _, _, info = env.step(ACTION)
    later, _, _, _, _ = env.step(ACTION)
    views = env.learner.views_per_step
    assert observation.dtype == np.float32
    assert observation.shape == (len(BOUNDS),) == env.observation_space.shape
    expected = {
        "progress": 2 / 12,
        "learning_rate": env.learner.learning_rate / 1.0,
        "clean_loss": info["clean_loss"] / math.log(views - 1),
        "adv_loss": info["adv_loss"] / math.log(views - 1),
        "mixed_loss": info["mixed_loss"] / math.log(2 * views - 1),
        "alignment": info["alignment"],
        "uniformity": info["uniformity"],
        "gradient_norm": math.log1p(info["grad_norm"]),
        "reward": reward,
        "epsilon": 0.5,
        "steps": 1.0,
        "step_size": 0.0,
    }
    for name, value in expected.items():
        shown = later if name == "learning_rate" else observation
        assert shown[ENTRY[name]] == pytest.approx(value, abs=1e-5), name


def test_losses_are_one_for_uninformative_features() -> None:
    env = make_single()
    env.reset(seed=0)
    before = env.step(ACTION)[0]
    # An untrained network tells views apart hardly better than chance.
    assert 0.7 < before[ENTRY["clean_loss"]] < 1.3
    assert 0.7 < before[ENTRY["mixed_loss"]] < 1.3


def test_smoothed_entries_average_over_minibatches() -> None:
    env = make_single(env__chunk_steps=1)
    env.reset(seed=0)
    smoothed = None
    for _ in range(4):
        observation, reward, _, _, _ = env.step(ACTION)
        smoothed = reward if smoothed is None else 0.9 * smoothed + 0.1 * reward
        assert observation[ENTRY["reward_smoothed"]] == pytest.approx(smoothed, abs=1e-6)


def test_episode_terminates_exactly_at_the_budget_and_then_needs_a_reset() -> None:
    env = make_single(env__chunk_steps=5)
    env.reset(seed=0)
    outcomes = [env.step(ACTION) for _ in range(3)]
    assert [(terminated, truncated) for _, _, terminated, truncated, _ in outcomes] == [(False, False)] * 2 + [
        (True, False)
    ]
    assert [outcome[4]["chunk_steps"] for outcome in outcomes] == [5, 5, 2]
    assert outcomes[-1][0][ENTRY["progress"]] == 1
    with pytest.raises(gym.error.ResetNeeded):
        env.step(ACTION)


def test_time_limit_truncates_without_terminating() -> None:
    env = gym.make("astra_env/AttackStrategy-v0", config="tiny", max_episode_steps=2)
    env.reset(seed=0)
    assert env.step(ACTION)[2:4] == (False, False)
    assert env.step(ACTION)[2:4] == (False, True)


@pytest.mark.parametrize("action", [np.array([3, 0, 0]), np.array([0.0, 0, 0]), np.zeros((2, 3), int), -ACTION, 4])
def test_invalid_actions_are_refused_and_train_nothing(action: Any) -> None:
    env = make_single()
    env.reset(seed=0)
    with pytest.raises(InputError, match="action"):
        env.step(action)
    assert env.learner.step_count == 0


def test_divergence_ends_the_episode_with_a_finite_penalty() -> None:
    env = make_single(env__divergence_penalty=-3.0)
    env.reset(seed=0)
    env.step(ACTION)
    with torch.no_grad():
        next(env.learner.target.parameters()).fill_(float("nan"))
    observation, reward, terminated, truncated, info = env.step(ACTION)
    assert (reward, terminated, truncated) == (-3.0, True, False)
    assert info["diverged"]
    assert "loss" in env.error
    assert observation in env.observation_space
    fresh, _ = env.reset()
    assert fresh in env.observation_space
    assert torch.isfinite(weights(env)).all()


def test_divergence_is_never_continued() -> None:
    env = make_single(env__reset_mode="continue")
    env.reset(seed=0)
    with torch.no_grad():
        next(env.learner.target.parameters()).fill_(float("inf"))
    assert env.step(ACTION)[2]
    env.reset()
    assert torch.isfinite(weights(env)).all()
    assert env.learner.step_count == 0


def test_seeded_resets_repeat_the_training_and_bare_ones_do_not() -> None:
    env = make_single()
    runs = []
    for seed in (7, 7, None):
        env.reset(seed=seed)
        runs.append((env.step(ACTION)[1], weights(env)))
    assert runs[0][0] == runs[1][0]
    assert torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][1], runs[2][1])


def test_first_bare_reset_uses_the_seed_of_the_configuration() -> None:
    bare, seeded = make_single(seed=11), make_single()
    bare.reset()
    seeded.reset(seed=11)
    assert torch.equal(weights(bare), weights(seeded))


def test_continue_keeps_an_unfinished_training_and_gives_a_finished_one_a_new_budget() -> None:
    env = make_single(env__reset_mode="continue", env__chunk_steps=6)
    env.reset(seed=0)
    env.step(ACTION)
    before = weights(env)
    env.reset()
    assert torch.equal(weights(env), before)
    assert env.learner.step_count == 6
    assert env.step(ACTION)[2]
    trained = weights(env)
    observation, _ = env.reset()
    assert torch.equal(weights(env), trained)
    assert observation[ENTRY["progress"]] == 0
    assert not env.step(ACTION)[2]
    env.reset(seed=0)
    assert not torch.equal(weights(env), trained)


def test_reset_with_a_checkpoint_starts_from_its_target_network(tmp_path: Path) -> None:
    donor, env = make_single(), make_single()
    donor.reset(seed=1)
    donor.step(ACTION)
    donor.save(tmp_path / "donor.pt")
    save_checkpoint(tmp_path / "run.pt", {"target": donor.learner.target.state_dict()})
    for name in ("donor.pt", "run.pt"):
        env.reset(seed=2, options={"checkpoint": str(tmp_path / name)})
        assert torch.equal(weights(env), weights(donor))
        assert env.learner.step_count == 0
    with pytest.raises(CheckpointError, match=r"missing\.pt"):
        env.reset(options={"checkpoint": str(tmp_path / "missing.pt")})
    with pytest.raises(InputError, match="checkpiont"):
        env.reset(options={"checkpiont": "x"})


def test_configurations_are_checked_at_construction() -> None:
    with pytest.raises(ConfigError, match=r"env\.reset_mode"):
        make_single(env__reset_mode="again")
    with pytest.raises(ConfigError, match=r"env\.chunks"):
        make_single(env__chunks=3)


def test_ansi_rendering_is_one_line_per_step() -> None:
    env = make_single(render_mode="ansi")
    env.reset(seed=0)
    _, reward, _, _, _ = env.step(ACTION)
    line = env.render()
    assert "\n" not in line
    assert line.startswith(f"step 2/12  reward {reward:+.4f}")
    assert "attack 8.0/255 in 3.0 steps of 2.0/255" in line


def test_rgb_rendering_shows_the_training() -> None:
    env = make_single(render_mode="rgb_array")
    env.reset(seed=0)
    empty = env.render()
    env.step(ACTION)
    env.step(ACTION)
    frame = env.render()
    assert frame.dtype == np.uint8
    assert frame.shape == empty.shape == (520, 960, 3)
    assert (frame != empty).mean() > 0.01


def test_record_video_writes_a_file(tmp_path: Path) -> None:
    env = gym.make(
        "astra_env/AttackStrategy-v0", config="tiny", overrides={"env.chunk_steps": 6}, render_mode="rgb_array"
    )
    env = gym.wrappers.RecordVideo(env, str(tmp_path), disable_logger=True)
    env.reset(seed=0)
    while not env.step(ACTION)[2]:
        pass
    env.close()
    assert [path.suffix for path in tmp_path.iterdir()] == [".mp4"]


def test_discrete_wrapper_reaches_every_attack_once() -> None:
    env = DiscreteStrategy(make_single())
    assert env.action_space.n == 3 * 3 * 2
    attacks = {tuple(env.action(number)) for number in range(18)}
    assert len(attacks) == 18
    assert all(attack in env.unwrapped.action_space for attack in map(np.array, attacks))
    assert env.action(1).tolist() == [0, 0, 1]
    for wrong in (18, -1, 0.5):
        with pytest.raises(InputError, match=r"0\.\.17"):
            env.action(wrong)


def test_box_wrapper_cuts_the_interval_into_equal_pieces() -> None:
    env = BoxStrategy(make_single())
    assert env.action(np.array([-1, -1, -1])).tolist() == [0, 0, 0]
    assert env.action(np.array([1, 1, 1])).tolist() == [2, 2, 1]
    assert env.action(np.array([-0.34, 0.34, -0.01])).tolist() == [0, 2, 0]
    assert env.action(np.array([-0.32, 0.32, 0.01])).tolist() == [1, 1, 1]
    with pytest.raises(InputError, match="finite"):
        env.action(np.array([np.nan, 0, 0]))


@pytest.mark.parametrize("reward", ["robust_progress", "gradient_alignment"])
def test_a_chunk_has_the_whole_outcome_of_its_minibatches(reward: str) -> None:
    arguments = {"images": 32}
    env = make_single(env__chunk_steps=3, learner__reward=reward, learner__reward_args=arguments)
    env.reset(seed=0)
    twin = env.fork().learner
    _, chunk, *_ = env.step(ACTION)
    alone = [twin.step(twin.space.decode(ACTION)).reward.item() for _ in range(3)]
    assert alone[:2] == [0, 0]
    assert alone[2] != 0
    assert chunk == pytest.approx(alone[2])
