from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from astra_env.envs import AttackStrategyEnv, InstanceAttackStrategyVectorEnv
from astra_env.errors import CheckpointError

OVERRIDES = {"learner.total_steps": 4, "env.chunk_steps": 1, "learner.batch_size": 4}


def build(kind: str) -> Any:
    if kind == "single":
        return AttackStrategyEnv("tiny", OVERRIDES)
    return InstanceAttackStrategyVectorEnv(8, "tiny", OVERRIDES)


def advance(env: Any, steps: int, seed: int) -> list[tuple[np.ndarray, Any]]:
    """Step with random actions; a finished single environment is reset, as the vector one does by itself."""
    random, outcomes = np.random.default_rng(seed), []
    for _ in range(steps):
        if isinstance(env, AttackStrategyEnv) and env.over:
            env.reset()
        shape = (3,) if isinstance(env, AttackStrategyEnv) else (env.num_envs, 3)
        observation, reward, *_ = env.step(random.integers(0, env.space.sizes, shape))
        outcomes.append((observation, reward))
    return outcomes


def same(first: list[tuple[np.ndarray, Any]], second: list[tuple[np.ndarray, Any]]) -> bool:
    return all(np.array_equal(a, c) and np.array_equal(b, d) for (a, b), (c, d) in zip(first, second, strict=True))


def weights(env: Any) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in env.learner.target.state_dict().values()])


@pytest.mark.parametrize("kind", ["single", "vector"])
@example(steps=5, more=5, seed=1159)  # the seeds of later episodes are 32-bit draws
@settings(
    max_examples=4, deadline=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(steps=st.integers(0, 6), more=st.integers(1, 6), seed=st.integers(0, 2**16))
def test_a_fork_continues_identically_and_independently(kind: str, steps: int, more: int, seed: int) -> None:
    env = build(kind)
    env.reset(seed=seed)
    advance(env, steps, seed)
    twin = env.fork()
    assert np.array_equal(twin.observation(), env.observation())
    advance(twin.fork(), more, seed + 2)  # a third one that goes elsewhere disturbs neither
    original = advance(env, more, seed + 1)
    assert same(original, advance(twin, more, seed + 1))
    assert torch.equal(weights(env), weights(twin))


@pytest.mark.parametrize("kind", ["single", "vector"])
def test_a_saved_environment_continues_identically_in_another_process_state(kind: str, tmp_path: Path) -> None:
    env, other = build(kind), build(kind)
    env.reset(seed=1)
    advance(env, 2, 0)
    env.save(tmp_path / "env.pt")
    expected = advance(env, 5, 1)
    other.reset(seed=99)
    advance(other, 1, 5)
    other.load(tmp_path / "env.pt")
    assert same(expected, advance(other, 5, 1))
    unopened = build(kind)
    unopened.load(tmp_path / "env.pt")
    assert same(expected, advance(unopened, 5, 1))


@pytest.mark.parametrize("kind", ["single", "vector"])
def test_a_state_can_be_loaded_twice(kind: str) -> None:
    """Optimisers keep the tensors they load, so a careless load would train the snapshot."""
    env = build(kind)
    env.reset(seed=1)
    advance(env, 2, 0)
    state = env.state_dict()
    runs = []
    for _ in range(2):
        env.load_state_dict(state)
        runs.append(advance(env, 3, 1))
    assert same(*runs)


def test_foreign_states_are_refused(tmp_path: Path) -> None:
    single, vector = build("single"), build("vector")
    single.reset(seed=0)
    single.save(tmp_path / "single.pt")
    with pytest.raises(CheckpointError, match="InstanceAttackStrategyVectorEnv"):
        vector.load(tmp_path / "single.pt")
    state = single.state_dict()
    del state["learner"]
    with pytest.raises(CheckpointError, match="learner"):
        single.load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"nowhere\.pt"):
        single.load(tmp_path / "nowhere.pt")
