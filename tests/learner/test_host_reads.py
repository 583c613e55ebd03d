"""A step waits for the device where it says so and nowhere else."""

import pytest
import torch
from host_reads import HostReads

import agents
from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig
from astra_env.data import load_dataset
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.learner.protocol import interact
from rpat import RPATConfig
from rpat.config import PRESET_PACKAGE
from rpat.learner import SupervisedLearner

SCHEDULE = "engine.py:__init__ tolist"
"""The one documented wait: how many steps each attack has."""
FINITE = "learner.py:_finite_gradient __bool__"
"""Supervised training stops before it spoils the weights."""


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", image_size=8)


def learner(digits, device="cpu", policy="reinforce", **overrides):
    config = load_config(ExperimentConfig, "tiny", {"device": device, **overrides})
    made = ContrastiveLearner(config, digits)
    context = agents.Context(made.space, made.device, config.seed, made.total_steps, made.warmup_steps)
    arguments = config.policy_args if policy == "reinforce" else {}
    return made, agents.make(policy, context=context, **arguments)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"policy_args.preset": "paper", "learner.reward": "astra"},
        {"policy_args.preset": "paper", "learner.reward": "astra", "policy_args.update_every": 1},
        {"policy": "random"},
        {"learner.reward": "cost_aware", "learner.fast": True},
        {"learner.objective": "simclr"},
    ],
)
def test_a_self_supervised_step_reads_the_step_counts_and_nothing_else(digits, overrides):
    made, policy = learner(digits, **overrides)
    interact(made, policy)
    with HostReads() as reads:
        for _ in range(2):
            interact(made, policy)
    expected = [] if made.objective.attacked is False else [SCHEDULE] * 2
    if overrides.get("policy_args.update_every") == 1:
        expected = expected * 2  # the rehearsal is an attack of its own
    # A policy that acts on arrays has its actions checked where they are, on the host.
    on_host = set() if overrides.get("policy") is None else {"strategy.py:_check tolist"}
    assert [found for found in reads.found if found not in on_host] == expected


@pytest.mark.parametrize("method", ["pgd_at", "trades", "mart", "consistency", "rebat"])
def test_a_supervised_step_reads_the_step_counts_and_whether_it_diverged(digits, method):
    overrides = {"method": method, "ema.start_epoch": 0, "learner.fold_batchnorm": method == "pgd_at"}
    config = load_config(RPATConfig, "tiny", overrides, package=PRESET_PACKAGE).resolved()
    made = SupervisedLearner(config, digits, torch.device("cpu"))
    made.step()
    with HostReads() as reads:
        made.step()
    assert reads.found == [SCHEDULE, FINITE]


def test_reads_of_every_kind_are_seen():
    values = torch.tensor([1.0, 0.0])
    with HostReads() as reads:
        values[0].item()
        values.tolist()
        values.cpu()
        values.to("cpu")
        values.numpy()
        bool(values[0] > 0)
        int(values[0])
        float(values[0])
        values[values > 0]
        torch.nonzero(values)
    kinds = [found.split()[-1] for found in reads.found]
    assert kinds == [
        "item", "tolist", "cpu", "to('cpu')", "numpy", "__bool__", "__int__", "__float__", "mask", "nonzero",
    ]  # fmt: skip


def test_sampling_draws_what_multinomial_draws():
    policy = agents.make("reinforce", preset="improved", width=4, blocks=(1,), seed=5)
    logits = torch.randn(64, 12, generator=torch.Generator().manual_seed(1))
    state = policy.generator.get_state()
    mine = policy._sample(logits)
    policy.generator.set_state(state)
    assert torch.equal(mine, torch.multinomial(logits.softmax(1), 1, generator=policy.generator)[:, 0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_the_profiler_sees_one_copy_to_the_host_a_step():
    from torch.profiler import ProfilerActivity, profile

    digits = load_dataset("digits", image_size=8, device="cuda")
    made, policy = learner(digits, device="cuda")
    for _ in range(2):
        interact(made, policy)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        interact(made, policy)
    names = [event.name for event in trace.events()]
    assert sum("Memcpy DtoH" in name for name in names) == 1
    assert sum(name == "cudaStreamSynchronize" for name in names) <= 1
