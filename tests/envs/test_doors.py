"""What may be handed to an environment and taken from it: plain values, run directories, tensors, forks."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from host_reads import HostReads
from tiny_envs import SINGLE, VECTOR, make_single, make_vector

import agents
import astra_env
from agents import Context
from astra_env.config.plain import plain
from astra_env.config.reading import load_config, to_yaml
from astra_env.config.schema import ExperimentConfig
from astra_env.envs import play
from astra_env.errors import CheckpointError, ConfigError, InputError
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.storage.checkpoint import checkpoint_file, load_checkpoint
from astra_env.storage.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parents[2]


class Conf(Mapping[str, Any]):
    """A mapping that is no dictionary, as OmegaConf's are."""

    def __init__(self, **values: Any) -> None:
        self.values_ = values

    def __getitem__(self, key: str) -> Any:
        return self.values_[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)


FOREIGN = Conf(
    strategy=Conf(epsilon=np.array([4, 8, 16]) / 255, steps=range(1, 4)),
    learner=Conf(batch_size=np.int64(8), learning_rate=torch.tensor(0.5), reward_args=Conf(), fast=np.bool_(False)),
    target=Conf(blocks=(1, 1, 1, 1)),
    data=Conf(root=Path("data")),
)


def test_foreign_values_become_plain_ones_in_configuration_and_spec() -> None:
    env = gym.make(SINGLE, config="tiny", overrides=FOREIGN)
    config = env.unwrapped.config
    assert config.strategy.steps == [1, 2, 3]
    assert config.target.blocks == (1, 1, 1, 1)
    assert type(config.learner.batch_size) is int
    assert type(config.learner.learning_rate) is float
    assert config.data.root == str(Path("data").resolve())
    json.dumps(env.spec.kwargs)
    again = EnvSpec.from_json(env.spec.to_json()).make().unwrapped.config
    assert again == config
    assert "batch_size: 8" in to_yaml(config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"strategy.epsilon": 8 / 255}, r"strategy\.epsilon: expected a list, got 0\.031"),
        ({"strategy.steps": np.int64(3)}, r"strategy\.steps: expected a list, got 3"),
        ({"views": {"crop_scale": 0.1}}, r"views\.crop_scale: expected a list of 2 values, got 0\.1"),
        ({"learner.batch_size": {1, 2}}, r"learner\.batch_size: expected a number, text, list or mapping"),
        ({"learner": Conf(reward_args=Conf(cost=object()))}, r"reward_args\.cost: expected a number"),
        ({"learner.batch_size": np.array([8, 8])}, r"learner\.batch_size: expected int"),
    ],
)
def test_values_of_another_kind_are_refused_in_one_line_that_names_the_field(overrides: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(ExperimentConfig, "tiny", overrides)
    assert "\n" not in str(caught.value)


def test_plain_keeps_what_is_plain_already() -> None:
    value = {"a": [1, 2.5, None, True, "8/255"], "b": {"c": []}}
    assert plain(value, "x") == value
    assert type(plain(np.float64(1), "x")) is float
    assert plain(np.array(3), "x") == 3


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a trained target and strategy network."""
    folder = tmp_path_factory.mktemp("run") / "run"
    config = load_config(ExperimentConfig, "tiny", {"seed": 5})
    learner = ContrastiveLearner(config)
    small = {"width": 4, "blocks": (1, 1, 1, 1)}
    policy = agents.make("reinforce", context=Context(learner.space, seed=5), **small)
    grids = {name: getattr(config.strategy, name) for name in ("epsilon", "steps", "step_size")}
    with RunDirectory(folder, to_yaml(config)) as run:
        run.save({**learner.state_dict(), "policy": policy.state_dict(), "config": {"strategy": grids}})
    return folder


def test_a_run_directory_stands_for_its_last_checkpoint(run_dir: Path, tmp_path: Path) -> None:
    last = run_dir / "checkpoints" / "last.pt"
    for path in (run_dir, str(run_dir), run_dir / "checkpoints", last):
        assert checkpoint_file(path) == last
    target = load_checkpoint(run_dir)["target"]
    for env in (make_single(), make_vector()):
        for path in (run_dir, str(run_dir)):
            env.reset(seed=0, options={"checkpoint": path})
            state = env.learner.target.state_dict()
            assert all(torch.equal(state[name], value) for name, value in target.items())
    assert agents.make(str(run_dir), context=Context(make_single().space)) is not None
    student = make_vector(learner__objective="deacl", learner__objective_args={"teacher": str(run_dir)})
    student.reset(seed=0)
    student.step(np.zeros((8, 3), dtype=np.int64))
    with pytest.raises(CheckpointError, match=r"holds no checkpoints/last\.pt"):
        make_single().reset(options={"checkpoint": tmp_path})


WRAPPED = {
    "OrderEnforcing": lambda env: env,
    "TimeLimit": lambda env: gym.wrappers.TimeLimit(env, 3),
    "statistics": lambda env: gym.wrappers.RecordEpisodeStatistics(gym.wrappers.NormalizeObservation(env)),
    "stack": lambda env: gym.wrappers.FrameStackObservation(env, 2),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_fork_goes_through_wrappers_and_copies_their_state(name: str) -> None:
    env = WRAPPED[name](gym.make(SINGLE, config="tiny", overrides={"env.chunk_steps": 1}))
    env.reset(seed=0)
    env.step(np.array([1, 2, 0]))
    twin = astra_env.fork(env)
    assert type(twin) is type(env)
    assert twin.unwrapped is not env.unwrapped
    astra_env.fork(twin).step(np.array([2, 2, 1]))  # a third one that goes elsewhere disturbs neither
    for action in ([0, 0, 0], [2, 1, 1]):
        one, other = env.step(np.array(action)), twin.step(np.array(action))
        assert np.array_equal(one[0], other[0])
        assert one[1:4] == other[1:4]
    if name == "TimeLimit":
        assert one[3]


def test_vector_environments_fork_with_their_wrappers() -> None:
    inner = gym.make_vec(SINGLE, num_envs=2, vectorization_mode="sync", config="tiny")
    for env in (gym.wrappers.vector.RecordEpisodeStatistics(make_vector()), inner):
        env.reset(seed=0)
        actions = np.zeros((env.num_envs, 3), dtype=np.int64)
        env.step(actions)
        twin = astra_env.fork(env)
        one, other = env.step(actions), twin.step(actions)
        assert np.array_equal(one[0], other[0])
        assert np.array_equal(one[1], other[1])


def test_other_environments_are_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="expected an environment of astra_env, got CartPoleEnv"):
        astra_env.fork(gym.make("CartPole-v1"))


def test_tensors_are_bit_equal_to_arrays_over_two_ends() -> None:
    lives = {}
    for kind in ("numpy", "torch"):
        env = make_vector(env__array_type=kind, learner__total_steps=3)
        random, found = np.random.default_rng(0), []
        observation, info = env.reset(seed=1)
        found += [observation, *info.values()]
        for _ in range(7):
            actions = random.integers(0, env.space.sizes, (8, 3))
            given = torch.from_numpy(actions) if kind == "torch" else actions
            tried = env.try_attack(given)
            observation, reward, terminated, truncated, info = env.step(given)
            final = np.stack(list(info.pop("final_obs"))) if "final_obs" in info else None
            last = info.pop("final_info", {})
            found += [tried, observation, reward, terminated, truncated, *info.values(), *last.values()]
            found += [] if final is None else [final]
        lives[kind] = found
    assert all(isinstance(value, torch.Tensor | np.ndarray) for value in lives["torch"])
    assert sum(isinstance(value, np.ndarray) for value in lives["torch"]) == 2  # final_obs, stacked above
    assert len(lives["numpy"]) == len(lives["torch"])
    for one, other in zip(lives["numpy"], lives["torch"], strict=True):
        same = np.asarray(other)
        assert same.dtype == np.asarray(one).dtype
        assert np.array_equal(one, same)


def test_a_step_on_tensors_waits_for_the_device_where_the_page_says() -> None:
    env = make_vector(arguments={"array_type": "torch"})
    env.reset(seed=0)
    actions = torch.zeros(8, 3, dtype=torch.int64)
    env.step(actions)
    with HostReads() as reads:
        env.step(actions)
    assert reads.found == ["strategy.py:_check tolist", "engine.py:__init__ tolist", "protocol.py:scalars tolist"]


def test_spaces_stay_gymnasiums_and_other_arrays_are_refused() -> None:
    env = gym.make_vec(VECTOR, num_envs=4, config="tiny", array_type="torch")
    assert env.action_space == make_vector(4).action_space
    observation, _ = env.reset(seed=0)
    assert observation.dtype == torch.uint8
    env.step(env.action_space.sample())  # arrays may go in
    for actions in (torch.zeros(3, 3), torch.zeros(4, 3), np.zeros((4, 3)), "up"):
        with pytest.raises(InputError, match="actions"):
            env.step(actions)
    for given in ({"arguments": {"array_type": "jax"}}, {"env__array_type": "jax"}):
        with pytest.raises(ConfigError, match="array_type: expected one of"):
            make_vector(**given)


@pytest.mark.parametrize("preset", ["paper", "improved"])
def test_policies_learn_the_same_from_tensors(preset: str) -> None:
    learned = []
    for kind in ("numpy", "torch"):
        env = make_vector(env__array_type=kind, learner__total_steps=3)
        small = {"width": 4, "blocks": (1, 1, 1, 1), "update_every": 1}
        policy = agents.make("reinforce", context=Context(env.space, seed=1), preset=preset, **small)
        result = play(env, policy, seed=0, learn=True)
        weights = [value.flatten().double() for value in policy.network.state_dict().values()]
        learned.append((result.rewards, result.last, torch.cat(weights)))
    assert learned[0][:2] == learned[1][:2]
    assert torch.equal(learned[0][2], learned[1][2])


def test_every_public_package_is_an_attribute_at_once() -> None:
    rooms = {
        entry.stem
        for entry in (ROOT / "astra_env").iterdir()
        if (entry.suffix == ".py" and entry.stem != "__init__") or (entry.is_dir() and any(entry.glob("*.py")))
    }
    asked = "help(astra_env.envs.AttackStrategyEnv)"
    code = f"import astra_env; [getattr(astra_env, room) for room in {sorted(rooms)}]; {asked}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Choose the attack of an adversarial training" in done.stdout
    assert rooms <= set(dir(astra_env))
