"""The environments around other learners: a classifier of package rpat, and one that a user wrote."""

import copy
import json
import math
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from tiny_envs import SINGLE, VECTOR

import agents
from agents import Context
from astra_env.commands import train as train_astra
from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig
from astra_env.data import BatchSampler
from astra_env.envs import AttackStrategyEnv, InstanceAttackStrategyVectorEnv, play
from astra_env.envs.observation import BOUNDS
from astra_env.errors import ConfigError
from astra_env.learner.make import make_learner
from astra_env.learner.protocol import Learner, StepReport, interact
from astra_env.storage.checkpoint import load_checkpoint
from astra_env.strategy import StrategySpace

SUPERVISED = {"learner.kind": "rpat.under_policy.learner:StrategyLearner"}
ENTRY = {name: index for index, name in enumerate(BOUNDS)}
ACTION = np.array([1, 2, 0])


class Toy(Learner):
    """A linear classifier that trains on images with as much noise as its attack's radius."""

    def __init__(self, config, dataset):
        self.config, self.dataset = config, dataset
        self.device = dataset.images.device
        self.space = StrategySpace(config.strategy.epsilon, config.strategy.steps, config.strategy.step_size)
        inputs = dataset.images[0].numel()
        self.target = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(inputs, len(dataset.classes)))
        torch.nn.init.zeros_(self.target[1].weight)
        torch.nn.init.zeros_(self.target[1].bias)
        self.sampler = BatchSampler(len(dataset), config.learner.batch_size, config.seed)
        self.total_steps, self.step_count = config.learner.total_steps, 0
        self.rows = next(self.sampler)

    @property
    def learning_rate(self):
        return self.config.learner.learning_rate

    def observation(self):
        return self.dataset.images[self.rows]

    def step(self, strategy):
        images, labels = self.observation().float() / 255, self.dataset.labels[self.rows]
        noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(self.step_count))
        attacked = images + strategy.epsilon.view(-1, 1, 1, 1) * (2 * noise - 1)
        losses = F.cross_entropy(self.target(attacked), labels, reduction="none")
        gradients = torch.autograd.grad(losses.mean(), list(self.target.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(self.target.parameters(), gradients, strict=True):
                parameter -= self.learning_rate * gradient
        norm = torch.nn.utils.get_total_norm(gradients)
        terms = {"loss": losses.mean().detach(), "grad_norm": norm}
        report = StepReport(
            self.step_count, self.learning_rate, strategy, losses.detach(), terms, images, attacked.clamp(0, 1)
        )
        self.rows = next(self.sampler)
        self.step_count += 1
        return report

    def state_dict(self):
        return {"target": self.target.state_dict(), "step": self.step_count, "sampler": self.sampler.state_dict(),
                "rows": self.rows}  # fmt: skip

    def load_state_dict(self, state):
        self.target.load_state_dict(state["target"])
        self.sampler.load_state_dict(state["sampler"])
        self.step_count, self.rows = state["step"], state["rows"]


TOY = {"learner.kind": f"{__name__}:Toy", "learner.reward": "whatever the learner makes of it"}
LEARNERS = {"supervised": ("supervised_tiny", SUPERVISED), "toy": ("tiny", TOY)}


def make(learner: str, kind: str, **overrides: Any) -> Any:
    preset, named = LEARNERS[learner]
    settings = {**named, **{name.replace("__", "."): value for name, value in overrides.items()}}
    if kind == "single":
        return gym.make(SINGLE, config=preset, overrides=settings).unwrapped
    mode = "vector_entry_point"
    return gym.make_vec(VECTOR, num_envs=7, vectorization_mode=mode, config=preset, overrides=settings)


def weights(env: Any) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in env.learner.target.state_dict().values()])


def advance(env: Any, steps: int, seed: int) -> list[Any]:
    random, outcomes = np.random.default_rng(seed), []
    for _ in range(steps):
        shape = (3,) if isinstance(env, AttackStrategyEnv) else (env.num_envs, 3)
        observation, reward, *_ = env.step(random.integers(0, env.space.sizes, shape))
        outcomes += [observation, np.asarray(reward)]
    return outcomes


def same(first: list[Any], second: list[Any]) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("learner", LEARNERS)
def test_checkers_of_gymnasium_and_sb3_pass_without_a_warning(learner: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = make(learner, "single", learner__total_steps=4)
        check_env(env)
        sb3_check_env(env, warn=True)


@pytest.mark.parametrize("kind", ["single", "vector"])
@pytest.mark.parametrize("learner", LEARNERS)
def test_saved_and_forked_environments_continue_identically(learner: str, kind: str, tmp_path: Any) -> None:
    env, other = make(learner, kind), make(learner, kind)
    env.reset(seed=1)
    advance(env, 2, 0)
    env.save(tmp_path / "env.pt")
    twin, state = env.fork(), copy.deepcopy(env.state_dict())
    expected = advance(env, 3, 1)
    assert same(expected, advance(twin, 3, 1))
    assert torch.equal(weights(env), weights(twin))
    other.reset(seed=99)
    other.load(tmp_path / "env.pt")
    assert same(expected, advance(other, 3, 1))
    assert torch.equal(weights(env), weights(other))
    twin.load_state_dict(state)
    assert same(expected, advance(twin, 3, 1))


def test_supervised_observation_shows_cross_entropy_in_units_of_log_classes() -> None:
    env = make("supervised", "single", learner__kind_args__robust_perception=True)
    env.reset(seed=0)
    observation, reward, _, _, info = env.step(ACTION)
    assert info["chunk_steps"] == 2
    for name in ("clean_loss", "adv_loss", "mixed_loss"):
        assert observation[ENTRY[name]] == pytest.approx(info[name] / math.log(10), abs=1e-6), name
    assert 0.7 < observation[ENTRY["clean_loss"]] < 1.3
    assert reward == pytest.approx(info["adv_loss"] - info["clean_loss"], abs=1e-5)
    assert observation[ENTRY["alignment"]] == pytest.approx(info["alignment"], abs=1e-6)
    assert observation[ENTRY["uniformity"]] < 0


def test_entries_for_which_a_learner_has_nothing_are_zero() -> None:
    env = make("toy", "single")
    env.reset(seed=0)
    observation, reward, _, _, info = env.step(ACTION)
    reported = {"loss", "grad_norm", "reward", "mean_epsilon", "mean_steps", "mean_step_size", "learning_rate"}
    assert set(env.scalars) == reported
    names = ("clean_loss", "adv_loss", "mixed_loss", "alignment", "uniformity")
    assert not any(observation[ENTRY[name]] or info[name] for name in names)
    assert observation[ENTRY["reward"]] == pytest.approx(reward) == pytest.approx(info["loss"])
    assert observation[ENTRY["gradient_norm"]] > 0


def test_every_image_of_a_classifier_is_a_sub_environment() -> None:
    env = make("supervised", "vector")
    observation, _ = env.reset(seed=0)
    assert env.num_envs == 7 == env.config.learner.batch_size
    assert observation.shape == (7, 3, 8, 8)
    actions = np.tile([2, 0, 1], (7, 1))
    actions[3] = [2, 2, 1]
    _, rewards, _, _, info = env.step(actions)
    assert info["steps"].tolist() == [1, 1, 1, 3, 1, 1, 1]
    assert len(set(rewards)) == 7
    assert not env.shared_reward


@pytest.mark.parametrize(
    ("method", "num_envs", "message"),
    [("pgd_at", 1, "an integer >= 2"), ("consistency", 5, "an even integer >= 4"), ("consistency", 2, "an even")],
)
def test_num_envs_must_hold_two_images_with_all_their_views(method: str, num_envs: int, message: str) -> None:
    overrides = {**SUPERVISED, "learner.kind_args.method": method}
    with pytest.raises(ConfigError, match=f"num_envs: expected {message}"):
        InstanceAttackStrategyVectorEnv(num_envs, "supervised_tiny", overrides)


def test_a_method_of_two_views_has_two_sub_environments_per_image() -> None:
    overrides = {**SUPERVISED, "learner.kind_args.method": "consistency"}
    env = InstanceAttackStrategyVectorEnv(6, "supervised_tiny", overrides)
    env.reset(seed=0)
    assert env.config.learner.batch_size == 3
    rewards = env.step(np.zeros((6, 3), dtype=np.int64))[1]
    assert rewards.shape == (6,)


def test_published_look_ahead_reward_is_shared() -> None:
    env = make("supervised", "vector", learner__reward="look_ahead", learner__reward_args={"steps": 1})
    env.reset(seed=0)
    _, rewards, _, _, info = env.step(np.zeros((7, 3), dtype=np.int64))
    assert len(set(rewards)) == 1
    assert env.shared_reward
    expected = info["adv_loss"][0] + 4 * info["reward_robust"][0] + 2 * info["reward_clean"][0]
    assert rewards[0] == pytest.approx(expected, abs=1e-4)


def test_divergence_of_a_classifier_ends_the_episode_and_the_next_one_is_sound() -> None:
    env = make("supervised", "single", env__divergence_penalty=-3.0, env__reset_mode="continue")
    env.reset(seed=0)
    env.step(ACTION)
    with torch.no_grad():
        next(env.learner.target.parameters()).fill_(float("nan"))
    observation, reward, terminated, truncated, info = env.step(ACTION)
    assert (reward, terminated, truncated) == (-3.0, True, False)
    assert info["diverged"]
    assert "diverged at step 2" in env.error
    assert observation in env.observation_space
    env.reset()
    assert torch.isfinite(weights(env)).all()


@pytest.mark.parametrize(
    ("learner", "preset"), [("supervised", "paper"), ("supervised", "improved"), ("toy", "improved")]
)
def test_reinforce_learns_bit_for_bit_the_same_as_in_the_training_script(learner: str, preset: str) -> None:
    """``interact`` is the loop body of the training script; the environment must be the same world."""
    name, named = LEARNERS[learner]
    overrides = {**named, "learner.batch_size": 7, "learner.total_steps": 6, "seed": 9}
    trained = make_learner(load_config(ExperimentConfig, name, overrides))
    context = Context(trained.space, seed=9, total_steps=trained.total_steps, warmup_steps=trained.warmup_steps)

    def policy() -> Any:
        small = {"width": 4, "blocks": (1, 1, 1, 1), "update_every": 2}
        return agents.make("reinforce", context=context, preset=preset, **small)

    scripted, lived = policy(), policy()
    while not trained.finished:
        interact(trained, scripted)
    env = InstanceAttackStrategyVectorEnv(7, name, overrides, autoreset_mode="next_step")
    result = play(env, lived, learn=True)
    assert len(result.rewards) == trained.total_steps
    assert lived.updates == scripted.updates == 3
    for key, value in trained.target.state_dict().items():
        assert torch.equal(env.learner.target.state_dict()[key], value), key
    for key, value in scripted.network.state_dict().items():
        assert torch.equal(lived.network.state_dict()[key], value), key


@pytest.mark.parametrize("learner", LEARNERS)
def test_a_training_run_ends_with_the_classifiers_own_accuracy_and_resumes_exactly(learner: str, tmp_path: Any) -> None:
    name, named = LEARNERS[learner]
    short = {"learner.total_steps": 4, "run.checkpoint_every": 2, "run.keep_every": 2, "probe.epsilon": [0.0, "8/255"]}
    config = load_config(ExperimentConfig, name, {**named, **short})
    assert train_astra.run_training(config, tmp_path / "whole", quiet=True) == 0
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["measured"] == "classifier"
    assert summary["probe"]["clean"]["total"] == 360
    assert list(summary["probe"]["pgd"]) == ["0/255", "8/255"]
    assert summary["steps"] == 4
    broken = tmp_path / "broken" / "checkpoints"
    broken.mkdir(parents=True)
    (broken / "last.pt").write_bytes((tmp_path / "whole" / "checkpoints" / "step_00000002.pt").read_bytes())
    (tmp_path / "broken" / "metrics.jsonl").write_bytes((tmp_path / "whole" / "metrics.jsonl").read_bytes())
    assert train_astra.run_training(config, tmp_path / "broken", resume=True, quiet=True) == 0
    states = [load_checkpoint(tmp_path / run / "checkpoints" / "last.pt") for run in ("whole", "broken")]
    for key, value in states[0]["target"].items():
        assert torch.equal(states[1]["target"][key], value), key
    assert (tmp_path / "whole" / "metrics.jsonl").read_text() == (tmp_path / "broken" / "metrics.jsonl").read_text()


def test_a_learner_of_ones_own_that_counts_nothing_ends_with_its_budget_of_compute() -> None:
    env = make("toy", "single", learner__total_steps=None, learner__budget=20.0, env__chunk_steps=1)
    env.reset(seed=0)
    spent, terminated = [], False
    while not terminated and len(spent) < 20:
        _, _, terminated, _, info = env.step(ACTION)
        spent.append(info["compute_spent"])
    assert spent == [3.0 * step for step in range(1, 8)]  # a linear layer's weights: three passes a step
