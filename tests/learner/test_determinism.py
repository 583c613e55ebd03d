"""The same seed gives the same training, whatever else the process does and however many threads it has."""

import contextlib
import random

import numpy as np
import pytest
import torch

import agents
from astra_env.compute import deterministic_algorithms
from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig
from astra_env.envs import AttackStrategyEnv, InstanceAttackStrategyVectorEnv
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.learner.protocol import interact
from rpat import Trainer as SupervisedTrainer

SHORT = {"learner.total_steps": 3, "env.chunk_steps": 1}


def weights(network):
    return torch.cat([tensor.detach().double().flatten() for tensor in network.state_dict().values()])


def self_supervised(disturb=lambda: None):
    learner = ContrastiveLearner(load_config(ExperimentConfig, "tiny", SHORT))
    policy = agents.make("reinforce", context=agents.Context(learner.space, seed=1), preset="improved", width=4)
    scalars = []
    while not learner.finished:
        disturb()
        scalars.append(interact(learner, policy).scalars())
    return [weights(learner.target), weights(policy.network)], scalars


def supervised(disturb=lambda: None):
    learner = SupervisedTrainer("tiny", {"method": "trades"}).learner
    scalars = []
    for _ in range(2):
        disturb()
        scalars.append({name: float(value) for name, value in learner.step().items()})
    return [weights(learner.model)], scalars


def environment(kind):
    def play(disturb=lambda: None):
        chunks = kind == "chunks"
        env = AttackStrategyEnv("tiny", SHORT) if chunks else InstanceAttackStrategyVectorEnv(32, "tiny", SHORT)
        env.reset(seed=5)
        env.action_space.seed(5)
        rewards = []
        for _ in range(4):
            disturb()
            if chunks and env.over:
                env.reset()
            rewards.append(np.array(env.step(env.action_space.sample())[1]).tolist())
        return [weights(env.learner.target)], rewards

    return play


TRAININGS = {
    "self-supervised": self_supervised,
    "supervised": supervised,
    "chunk environment": environment("chunks"),
    "view environment": environment("views"),
}


def equal(first, second):
    return first[1] == second[1] and all(map(torch.equal, first[0], second[0]))


@pytest.mark.parametrize("name", TRAININGS)
def test_a_users_own_random_numbers_disturb_no_training_and_are_not_disturbed(name):
    own = np.random.RandomState(0)

    def seed_and_draw():
        seed = int(own.randint(2**31))
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the user's
        random.seed(seed)
        torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002

    assert equal(TRAININGS[name](), TRAININGS[name](seed_and_draw))
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
        TRAININGS[name]()
        after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


@pytest.mark.parametrize("name", ["chunk environment", "view environment"])
def test_environments_that_take_turns_in_one_process_do_not_disturb_each_other(name):
    other = InstanceAttackStrategyVectorEnv(32, "tiny", {**SHORT, "learner.total_steps": 100})
    other.reset(seed=77)
    alone = TRAININGS[name]()
    assert equal(alone, TRAININGS[name](lambda: other.step(other.action_space.sample())))


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["self-supervised", "supervised"])
def test_the_number_of_threads_changes_no_more_than_rounding(name):
    """Sums split over threads round otherwise, and a sign in the attack may flip: close, and repeatable, not equal."""
    runs = []
    for count in (1, 2, 2):
        with threads(count):
            runs.append(TRAININGS[name]())
    assert equal(runs[1], runs[2])
    for first, second in zip(runs[0][1], runs[1][1], strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=0.05)


def test_deterministic_kernels_change_nothing_on_the_cpu_and_are_switched_off_again():
    plain = self_supervised()
    with deterministic_algorithms(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert equal(plain, self_supervised())
    assert not torch.are_deterministic_algorithms_enabled()
