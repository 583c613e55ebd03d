"""Gymnasium's own wrappers and vector environments; each crosses two episode ends."""

from typing import Any

import gymnasium as gym
import gymnasium.wrappers as single_wrappers
import gymnasium.wrappers.vector as vector_wrappers
import numpy as np
import pytest
from client_envs import ACTION, LENGTH, SHORT, SINGLE, VECTOR, rewards_of, single, vector

MODES = ("same_step", "next_step", "disabled")
WRAPPERS: dict[str, Any] = {
    "RecordEpisodeStatistics": vector_wrappers.RecordEpisodeStatistics,
    "NormalizeReward": vector_wrappers.NormalizeReward,
    "ClipReward": lambda env: vector_wrappers.ClipReward(env, -1, 1),
    "TransformAction": lambda env: vector_wrappers.TransformAction(env, lambda action: action),
    "DictInfoToList": vector_wrappers.DictInfoToList,
    "FlattenObservation": vector_wrappers.FlattenObservation,
    "DtypeObservation": lambda env: vector_wrappers.DtypeObservation(env, np.float32),
    "RescaleObservation": lambda env: vector_wrappers.RescaleObservation(env, 0, 1),
    "ReshapeObservation": lambda env: vector_wrappers.ReshapeObservation(env, (192,)),
    "NormalizeObservation": vector_wrappers.NormalizeObservation,
}
OF_OBSERVATIONS = {"FlattenObservation", "DtypeObservation", "RescaleObservation", "ReshapeObservation"}
REFUSED = {(name, "same_step") for name in OF_OBSERVATIONS} | {
    ("NormalizeObservation", "same_step"),
    ("NormalizeObservation", "disabled"),
}
"""What Gymnasium 1.4 itself refuses, in words of its own; the page says so."""


def live(env: Any, mode: str, steps: int = 9) -> list[tuple[Any, ...]]:
    """Step a vector environment as its autoreset mode wants it; returns every outcome."""
    outcomes = []
    env.reset(seed=0)
    for _ in range(steps):
        outcomes.append(env.step(np.zeros((4, 3), dtype=np.int64)))
        if mode == "disabled" and (outcomes[-1][2] | outcomes[-1][3]).all():
            env.reset(options={"reset_mask": np.ones(4, dtype=np.bool_)})
    return outcomes


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", WRAPPERS)
def test_vector_wrappers_live_through_two_ends_or_are_refused_at_once(name: str, mode: str) -> None:
    if (name, mode) in REFUSED:
        with pytest.raises(ValueError, match="autoreset_mode"):
            WRAPPERS[name](vector(mode))
        return
    env = WRAPPERS[name](vector(mode))
    outcomes = live(env, mode)
    ends = [number for number, outcome in enumerate(outcomes) if (outcome[2] | outcome[3]).all()]
    assert ends == ([2, 6] if mode == "next_step" else [2, 5, 8])
    assert all(outcome[0] in env.observation_space for outcome in outcomes)


@pytest.mark.parametrize("mode", MODES)
def test_episode_statistics_count_three_steps_three_times_in_every_mode(mode: str) -> None:
    env = vector_wrappers.RecordEpisodeStatistics(vector(mode))
    outcomes = live(env, mode, steps=11 if mode == "next_step" else 9)
    told = [outcome[4]["episode"] for outcome in outcomes if "episode" in outcome[4]]
    assert [entry["l"].tolist() for entry in told] == [[LENGTH] * 4] * 3
    rewards = np.stack([outcome[1] for outcome in outcomes])
    assert np.allclose(told[0]["r"], rewards[:3].sum(0))
    second = slice(4, 7) if mode == "next_step" else slice(3, 6)
    assert np.allclose(told[1]["r"], rewards[second].sum(0))


def test_the_three_modes_live_the_same_lives() -> None:
    lives = {mode: live(vector(mode), mode, 11 if mode == "next_step" else 9) for mode in MODES}
    steps = {mode: [o for n, o in enumerate(lives[mode]) if mode != "next_step" or n % 4 != 3] for mode in MODES}
    for mode in ("next_step", "disabled"):
        for one, other in zip(steps["same_step"], steps[mode], strict=True):
            assert np.array_equal(one[1], other[1])
            final = one[4]["final_obs"] if "final_obs" in one[4] else one[0]
            assert np.array_equal(np.stack(list(final)), other[0])


def test_information_has_the_same_names_in_reset_and_step_and_none_of_a_clients() -> None:
    taken = {"reward", "rewards", "action", "actions", "observation", "obs", "pixels", "state", "done", "dones", "next",
             "terminated", "truncated", "terminations", "truncations", "episode", "final_obs", "final_observation",
             "final_info", "terminal_observation", "TimeLimit.truncated", "is_success", "step_count", "traj_ids",
             "is_init", "collector", "mask", "weight", "index", "env_id", "error"}  # fmt: skip
    for env in (single(), vector("disabled"), vector("next_step")):
        action = ACTION if env.action_space.shape == (3,) else np.zeros((4, 3), dtype=np.int64)
        first = env.reset(seed=0)[1]
        infos = [first, *(env.step(action)[4] for _ in range(3)), env.reset()[1]]
        assert len({tuple(info) for info in infos}) == 1
        assert not taken & set(first)
        kinds = [{name: np.asarray(value).dtype for name, value in info.items()} for info in infos]
        assert all(kind == kinds[0] for kind in kinds)
        assert all(kind.kind in "fib" for kind in kinds[0].values())
        if env.action_space.shape == (3,):
            assert all(isinstance(value, np.generic) for info in infos for value in info.values())


@pytest.mark.parametrize("mode", [gym.vector.AutoresetMode.SAME_STEP, gym.vector.AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_copies_in_gymnasiums_vector_environments_have_episodes_of_their_own(kind: str, mode: Any) -> None:
    settings = {"autoreset_mode": mode}
    envs = gym.make_vec(
        SINGLE, num_envs=2, vectorization_mode=kind, vector_kwargs=settings, config="tiny", overrides=SHORT
    )
    envs = vector_wrappers.RecordEpisodeStatistics(envs)
    envs.reset(seed=5)
    lengths, returns, finals = [], [], []
    for _ in range(7):
        observation, _, terminated, truncated, info = envs.step(np.zeros((2, 3), dtype=np.int64))
        if (terminated | truncated).all():
            lengths.append(info["episode"]["l"].tolist())
            returns.append(info["episode"]["r"])
            finals.append(np.stack(list(info["final_obs"])) if "final_obs" in info else observation)
    envs.close()
    assert lengths == [[LENGTH] * 2] * 2
    for copy in range(2):
        rewards, last = rewards_of(5 + copy)
        assert [returned[copy] for returned in returns] == pytest.approx([sum(entry) for entry in rewards])
        assert all(np.array_equal(final[copy], sight) for final, sight in zip(finals, last, strict=True))


def test_unseeded_copies_differ_from_each_other_and_from_another_try_also_after_autoreset() -> None:
    def tried() -> np.ndarray:
        envs = gym.make_vec(SINGLE, num_envs=3, config="tiny", overrides=SHORT)
        envs.reset()
        return np.stack([envs.step(np.zeros((3, 3), dtype=np.int64))[1] for _ in range(7)])

    first, second = tried(), tried()
    for row in (0, 6):  # of the first episode and of the one after an autoreset
        assert len({*first[row], *second[row]}) == 6
    views = [vector(num_envs=4).reset()[0] for _ in range(2)]
    assert not np.array_equal(*views)


def test_a_named_seed_counts_and_a_presets_does_not() -> None:
    def first(**overrides: Any) -> float:
        env = gym.make(SINGLE, config="tiny", overrides={**SHORT, **overrides})
        env.reset()
        return float(env.step(ACTION)[1])

    assert first(seed=4) == first(seed=4) != first(seed=5)
    assert first() != first()


def test_single_wrappers_know_the_budget() -> None:
    env = gym.make(SINGLE, config="tiny", overrides={"learner.total_steps": 5, "env.chunk_steps": 2})
    assert env.spec.max_episode_steps == 3
    env = single_wrappers.TimeAwareObservation(env, flatten=False)
    env.reset(seed=0)
    outcomes = [env.step(ACTION) for _ in range(3)]
    assert [int(outcome[0]["time"][0]) for outcome in outcomes] == [1, 2, 3]
    assert all(outcome[0] in env.observation_space for outcome in outcomes)
    assert [outcome[2:4] for outcome in outcomes] == [(False, False)] * 2 + [(True, False)]
    assert gym.make(env.spec).spec.max_episode_steps == 3
    by_epochs = gym.make(SINGLE, config="tiny", overrides={"learner.total_steps": None, "learner.epochs": 1})
    assert by_epochs.spec.max_episode_steps == -(-by_epochs.unwrapped.learner.total_steps // 2)
    by_compute = gym.make(SINGLE, config="tiny", overrides={"learner.budget": 100.0, "learner.total_steps": None})
    assert by_compute.spec.max_episode_steps is None
    assert vector().spec.max_episode_steps == 3
    assert vector(max_episode_steps=2).spec.max_episode_steps == 2


@pytest.mark.parametrize("name", ["RecordEpisodeStatistics", "NormalizeObservation", "NormalizeReward", "FrameStack"])
def test_single_wrappers_live_through_two_ends(name: str) -> None:
    made: dict[str, Any] = {
        "FrameStack": lambda env: single_wrappers.FrameStackObservation(env, 2),
    }
    env = made.get(name, getattr(single_wrappers, name, None))(single())
    env = single_wrappers.RecordEpisodeStatistics(env, stats_key="lived")
    lengths = []
    env.reset(seed=0)
    for _ in range(6):
        _, _, terminated, truncated, info = env.step(ACTION)
        if terminated or truncated:
            lengths.append(int(info["lived"]["l"]))
            env.reset()
    assert lengths == [LENGTH] * 2


@pytest.mark.parametrize("id_", [SINGLE, VECTOR])
def test_the_default_vectorization_needs_no_words(id_: str) -> None:
    envs = gym.make_vec(id_, num_envs=4, config="tiny", overrides=SHORT)
    observation, _ = envs.reset(seed=0)
    assert observation.shape[0] == 4
