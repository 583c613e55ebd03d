"""The caller's PyTorch modes neither break nor change a training."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tiny_envs import make_single, make_vector

import agents
from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig
from astra_env.errors import ConfigError
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.modes import own_modes
from astra_env.strategy import AttackStrategy
from rpat import RPATConfig
from rpat.config import PRESET_PACKAGE
from rpat.learner import SupervisedLearner


@contextlib.contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def strict_kernels() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = False


@contextlib.contextmanager
def coarse_products() -> Iterator[None]:
    torch.set_float32_matmul_precision("medium")
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.mkldnn.conv.fp32_precision = "none"


MODES: dict[str, Any] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default dtype": default_dtype,
    "default device": default_device,
    "device context": lambda: torch.device("meta"),
    "deterministic algorithms": strict_kernels,
    "matmul precision": coarse_products,
    "anomaly detection": torch.autograd.detect_anomaly,
}
MODES["most at once"] = lambda: _together(*(MODES[name] for name in MODES if name not in SLOW))
SLOW = ("anomaly detection", "most at once")


@contextlib.contextmanager
def _together(*modes: Any) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode())
        yield


def life(kind: str, mode: Any, tmp_path: Any, **overrides: Any) -> list[Any]:
    """Everything a client may do with an environment, all of it in ``mode``; returns all numbers that come of it."""
    make = make_single if kind == "single" else make_vector
    found: list[Any] = []
    random = np.random.default_rng(0)
    render = {"render_mode": "ansi"} if kind == "single" else {"arguments": {"render_mode": "ansi"}}
    with mode():
        env = make(**render, learner__total_steps=3, env__chunk_steps=1, **overrides)
        shape = (3,) if kind == "single" else (8, 3)

        def step(entry: Any) -> None:
            outcome = entry.step(random.integers(0, entry.space.sizes, shape))
            found.extend([*outcome[:4], outcome[4]["loss"], outcome[4]["mean_epsilon"], entry.render()])

        found.append(env.reset(seed=3)[0])
        step(env)
        if kind == "vector":
            found.append(env.try_attack(random.integers(0, env.space.sizes, shape)))
        twin = env.fork()
        step(twin)
        env.save(tmp_path / "env.pt")
        step(env)
        env.load(tmp_path / "env.pt")
        step(env)
        step(env)
        env.reset()
        step(env)
        state = env.state_dict()
    found.append(torch.cat([value.flatten().double() for value in state["target"].values()]).numpy())
    return found


def assert_same(first: list[Any], second: list[Any]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(other))


@pytest.fixture(scope="module")
def plain_lives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    place = tmp_path_factory.mktemp("plain")
    return {kind: life(kind, contextlib.nullcontext, place) for kind in ("single", "vector")}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("kind", ["single", "vector"])
@pytest.mark.parametrize("mode", MODES)
def test_a_life_in_any_mode_gives_the_same_numbers(mode: str, kind: str, plain_lives: Any, tmp_path: Any) -> None:
    assert_same(life(kind, MODES[mode], tmp_path), plain_lives[kind])


@pytest.mark.parametrize("mode", ["autocast", "most at once"])
@pytest.mark.parametrize(
    "overrides",
    [
        {"learner.reward": "vs_fixed"},
        {"learner.precision": "bf16"},
        {"learner.objective": "rocl"},
        {"learner.kind": "supervised", "learner.reward": "look_ahead", "learner.kind_args": {"method": "trades"}},
    ],
)
def test_other_learners_and_precisions_do_not_mind_either(overrides: Any, mode: str, tmp_path: Any) -> None:
    named = {name.replace(".", "__"): value for name, value in overrides.items()}
    plain = life("vector", contextlib.nullcontext, tmp_path, **named)
    assert_same(life("vector", MODES[mode], tmp_path, **named), plain)


@pytest.mark.parametrize("mode", ["autocast", "default device", "most at once"])
def test_learners_used_directly_do_not_mind(mode: str) -> None:
    def trained(context: Any) -> list[Any]:
        with context():
            learner = ContrastiveLearner(load_config(ExperimentConfig, "tiny"))
            learner.observation()  # the next minibatch is made now and trained on later
            policy = agents.make("random", context=agents.Context(learner.space, learner.device))
            actions = policy.predict(np.zeros((learner.views_per_step, 3, 8, 8)))[0]
            reports = [learner.step(learner.space.decode(actions)).scalars()]
            reports.append(learner.step(AttackStrategy.constant(1, device="cpu")).scalars())
            config = load_config(RPATConfig, "tiny", package=PRESET_PACKAGE).resolved()
            supervised = SupervisedLearner(config, learner.dataset, torch.device("cpu"))
            reports += [{name: float(value) for name, value in supervised.step().items()} for _ in range(2)]
        return reports

    assert trained(MODES[mode]) == trained(contextlib.nullcontext)


@pytest.mark.parametrize("mode", ["no_grad", "most at once"])
@pytest.mark.parametrize("preset", ["paper", "improved"])
def test_the_policy_of_the_paper_learns_the_same(preset: str, mode: str) -> None:
    from astra_env.envs import play

    def learned(context: Any) -> torch.Tensor:
        with context():
            env = make_vector(learner__total_steps=3)
            small = {"width": 4, "blocks": (1, 1, 1, 1), "update_every": 1}
            policy = agents.make("reinforce", context=agents.Context(env.space, seed=1), preset=preset, **small)
            play(env, policy, seed=0, learn=True)
            return torch.cat([value.flatten().double() for value in policy.network.state_dict().values()])

    assert torch.equal(learned(MODES[mode]).clone(), learned(contextlib.nullcontext))


def test_the_callers_modes_are_given_back_even_after_an_error() -> None:
    env = make_single()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), default_dtype(), strict_kernels():
            env.reset()
            with pytest.raises(ValueError, match="action"):
                env.step(np.array([99, 0, 0]))
            assert torch.get_default_dtype() == torch.float64
            assert not torch.is_grad_enabled()
            assert torch.is_autocast_enabled("cpu")
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.get_float32_matmul_precision() == "medium"
            assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
            assert (torch.ones(2, 2).float() @ torch.ones(2, 2).float()).dtype == torch.bfloat16
    finally:
        torch.set_float32_matmul_precision("highest")


def test_run_threads_fixes_the_number_of_threads_whatever_the_caller_set() -> None:
    seen: list[int] = []
    outcomes = []
    before = torch.get_num_threads()
    try:
        for callers in (1, 2):
            torch.set_num_threads(callers)
            env = make_vector(run__threads=1)
            env.reset(seed=0)
            env.learner.target.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
            outcomes.append(env.step(np.ones((8, 3), dtype=np.int64))[1])
            assert torch.get_num_threads() == callers
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}
    assert np.array_equal(*outcomes)


FORKS = """
import os, sys
import gymnasium as gym, numpy as np, torch
import astra_env

torch.set_num_threads(2)
# Images large enough for several threads to share the work.
wide = {"data.image_size": 32, "views.size": 32, "learner.batch_size": 32, "target.width": 16, "env.chunk_steps": 1}
make = lambda: gym.make("astra_env/AttackStrategy-v0", config="tiny", overrides=wide)
env = make()
env.reset(seed=0)
action = np.zeros(3, dtype=np.int64)
env.step(action)
if sys.argv[1] == "async":
    envs = gym.vector.AsyncVectorEnv([make] * 2, context="fork")
    envs.reset(seed=0)
    rewards = envs.step(np.stack([action] * 2))[1]
else:
    from stable_baselines3.common.vec_env import SubprocVecEnv
    envs = SubprocVecEnv([make] * 2, start_method="fork")
    envs.seed(0)
    envs.reset()
    rewards = envs.step(np.stack([action] * 2))[1]
envs.close()
print("rewards", len(rewards), len(set(rewards.tolist())))
"""


@pytest.mark.parametrize("client", ["async", "sb3"])
def test_workers_forked_after_a_training_on_two_threads_do_not_hang(client: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKS, client], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["rewards", "2", "2"]


def test_a_forked_process_refuses_several_threads_instead_of_hanging() -> None:
    code = """
import os
from astra_env.errors import ConfigError
from astra_env.modes import own_modes

child = os.fork()
if child == 0:
    try:
        with own_modes(threads=2):
            pass
    except ConfigError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("run.threads: a forked process computes on one thread, got 2")
    with own_modes(threads=1), own_modes(threads=2):
        pass
    assert issubclass(ConfigError, ValueError)
