"""Every optimiser moves every parameter that has a gradient, also those that start at zero, in a few real steps."""

import pytest
import torch
from torch import nn

import agents
from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig
from astra_env.data import load_dataset
from astra_env.evaluation import finetune, linear_probe
from astra_env.evaluation.probes.lp_aft import LPAFTConfig, lp_aft
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.learner.protocol import interact
from astra_env.models import target_resnet18
from astra_env.strategy import Attack
from rpat import Trainer

STEPS = 4
ROUNDING = {"fc.fc1.bias"}
"""A bias before a norm: its gradient is zero in exact arithmetic, and rounding here."""
ATTACK = Attack(8 / 255, 8 / 255, 1)


def snapshot(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def with_gradient(module):
    """Names of the parameters whose gradient in the last step is not zero."""
    return {
        name for name, parameter in module.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }


def unmoved(module, start):
    return {name for name, parameter in module.named_parameters() if torch.equal(parameter.detach(), start[name])}


def learner_and_policy(policy_args, **overrides):
    learner = ContrastiveLearner(load_config(ExperimentConfig, "tiny", {"learner.total_steps": 2 * STEPS, **overrides}))
    context = agents.Context(learner.space, learner.device, 0, learner.total_steps, learner.warmup_steps)
    return learner, agents.make("reinforce", context=context, width=4, blocks=(1, 1), **policy_args)


@pytest.mark.parametrize("optimizer", ["lars", "sgd"])
def test_target(optimizer):
    learner, policy = learner_and_policy({}, **{"learner.optimizer": optimizer})
    start = snapshot(learner.target)
    for _ in range(STEPS):
        interact(learner, policy)
    assert with_gradient(learner.target) | ROUNDING == set(start)
    assert unmoved(learner.target, start) <= ROUNDING


@pytest.mark.parametrize("preset", ["paper", "improved"])
@pytest.mark.parametrize("optimizer", ["lars", "adam"])
def test_policy(preset, optimizer):
    learner, policy = learner_and_policy({"preset": preset, "optimizer": optimizer, "update_every": 1})
    start = snapshot(policy.network)
    for _ in range(STEPS):
        interact(learner, policy)
    assert policy.updates == STEPS
    assert with_gradient(policy.network) == set(start)
    assert not unmoved(policy.network, start)


@pytest.mark.parametrize("method", ["pgd_at", "trades"])
def test_supervised_network(method):
    learner = Trainer("tiny", {"method": method}).learner
    start = snapshot(learner.model)
    for _ in range(STEPS):
        learner.step()
    assert with_gradient(learner.model) == set(start)
    assert not unmoved(learner.model, start)


def test_deacls_teacher():
    learner, _ = learner_and_policy({}, **{"learner.objective": "deacl"})
    teacher = learner.objective.teacher
    start = snapshot(teacher)
    for _ in range(STEPS):
        learner.prepare()
    clean = {name for name in start if "bn_list.1" not in name}  # the other branch's norms are not used
    assert with_gradient(teacher) | ROUNDING == clean
    assert unmoved(teacher, start) <= set(start) - clean | ROUNDING


@pytest.fixture
def encoder():
    return target_resnet18(
        width=4, blocks=(1, 1), feature_dim=8, hidden_dim=8, generator=torch.Generator().manual_seed(0)
    )


@pytest.fixture(scope="module")
def images():
    return load_dataset("digits", "train", image_size=8).subset(torch.arange(64))


@pytest.mark.parametrize("adversarial", [False, True])
def test_head_of_a_linear_probe(encoder, images, adversarial):
    settings = {"epochs": 2, "batch_size": 32, "augment": False, "attack": ATTACK if adversarial else None}
    head = linear_probe(encoder, images, **settings).head
    zeros = {name: torch.zeros_like(parameter) for name, parameter in head.named_parameters()}
    assert with_gradient(head) == {"weight", "bias"}
    assert not unmoved(head, zeros)


def trunk(module: nn.Module, prefix: str = "") -> set[str]:
    """Names of what lies on the way from images to embeddings: all but the projection head."""
    return {name for name, _ in module.named_parameters() if not name.startswith(f"{prefix}fc.")}


def test_fine_tuned_encoder_and_its_head(encoder, images):
    tuned = finetune(encoder, images, epochs=2, batch_size=32, augment=False, attack=ATTACK)
    start = {f"encoder.{name}": value for name, value in snapshot(encoder).items()}
    start |= {f"head.{name}": torch.zeros_like(value) for name, value in tuned.head.named_parameters()}
    assert with_gradient(tuned) == trunk(tuned, "encoder.")
    assert not unmoved(tuned, start) & trunk(tuned, "encoder.")


def test_encoder_after_lp_aft(encoder, images):
    start = snapshot(encoder)
    settings = {"clusters": 4, "probe_epochs": 1, "epochs": 2, "attack_steps": 1, "batch_size": 32, "augment": False}
    found = lp_aft(encoder, images, LPAFTConfig(branches="both", **settings))
    route = {name for name in trunk(found) if "bn_list.0" not in name}  # the adversarial one
    assert with_gradient(found) == route
    assert not unmoved(found, start) & route
