"""The settings by which the self-supervised methods differ: heads, normalisation, views, attack mode, last batch."""

import copy

import numpy as np
import pytest
import torch
from random_weights import randomized
from torch import nn

import agents
from astra_env.augment.simclr import build_augment
from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig, TargetConfig
from astra_env.envs import AttackStrategyEnv, InstanceAttackStrategyVectorEnv
from astra_env.errors import ConfigError
from astra_env.export import fold_branch, read_safetensors
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.learner.protocol import interact
from astra_env.models import NORMALIZATIONS
from astra_env.models.build import build_target
from astra_env.models.folded import Folded
from astra_env.strategy import AttackStrategy

ATTACK = AttackStrategy.constant(1, 8 / 255, 2, 4 / 255)
SMALL = {"learner.batch_size": 8, "data.max_images": 40}
OBJECTIVE_ARGS = {"advcl": {"clusters": [2, 5]}, "deacl": {"teacher_steps": 1}}


def make_learner(objective="astra", **overrides):
    arguments = {"learner.objective": objective, "learner.objective_args": OBJECTIVE_ARGS.get(objective, {})}
    return ContrastiveLearner(load_config(ExperimentConfig, "tiny", {**SMALL, **arguments, **overrides}))


def buffers(*networks):
    return torch.cat([value.flatten().double() for network in networks for value in network.buffers()])


PUBLISHED = {
    # method: head, feature_dim, hidden_dim, normalize, interpolation, smallest crop, colour first, mode, drop_last
    "acl": ("mlp3", 512, 512, "imagenet", "bicubic", 0.1, False, "eval", False, 512, "step"),
    "dynacl": ("mlp3", 512, 512, "imagenet", "bilinear", 0.1, False, "eval", False, 512, "epoch"),
    "rocl": ("mlp2", 128, 2048, "none", "bilinear", 0.08, True, "eval", False, 512, "epoch"),
    "advcl": ("mlp2_bn", 128, 512, "none", "bilinear", 0.2, False, "train", False, 512, "step"),
    "deacl": ("mlp3", 512, 2048, "cifar10", "bicubic", 0.1, False, "eval", True, 256, "epoch"),
    "cifar10": ("mlp3", 512, 2048, "imagenet", "bicubic", 0.1, False, "eval", True, 512, "step"),
}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_presets_hold_the_published_settings(name):
    config = load_config(ExperimentConfig, name)
    config.validate()
    target, views, learner = config.target, config.views, config.learner
    found = (target.head, target.feature_dim, target.hidden_dim, target.normalize, views.interpolation)
    found += (views.crop_scale[0], views.color_first, learner.attack_mode, learner.drop_last, learner.batch_size)
    assert (*found, learner.schedule) == PUBLISHED[name]


def test_defaults_are_astras():
    config = load_config(ExperimentConfig)
    assert (config.target.head, config.target.normalize, config.views.interpolation) == ("mlp3", "imagenet", "bicubic")
    assert (config.learner.attack_mode, config.learner.drop_last, config.learner.schedule) == ("eval", True, "step")
    assert config.views.color_first is False


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("target.head", "linear", "target.head: expected one of mlp3, mlp2, mlp2_bn, got 'linear'"),
        ("target.normalize", "cifar", "target.normalize: expected one of imagenet, cifar10, cifar100, none"),
        ("views.interpolation", "nearest", "views.interpolation: expected one of bicubic, bilinear"),
        ("learner.attack_mode", "test", "learner.attack_mode: expected one of eval, train"),
        ("learner.schedule", "batch", "learner.schedule: expected one of step, epoch"),
    ],
)
def test_values_that_do_not_exist_are_named(key, value, message):
    with pytest.raises(ConfigError, match=message):
        load_config(ExperimentConfig, "tiny", {key: value}).validate()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"target.backbone": "vit", "target.head": "mlp2"}, "target.head: target.backbone 'vit' has a head of its own"),
        ({"learner.attack_mode": "train", "learner.fold_batchnorm": True}, "learner.fold_batchnorm: .* attack_mode"),
        ({"learner.attack_mode": "train", "learner.accumulate": 2}, "learner.accumulate: .* attack_mode train"),
    ],
)
def test_settings_that_exclude_each_other_are_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(ExperimentConfig, "tiny", overrides).validate()


# --- heads and normalisation ------------------------------------------------------------------------------------------


def tiny_target(**values):
    config = TargetConfig(width=4, blocks=(1, 1, 1, 1), feature_dim=6, hidden_dim=10, **values)
    return randomized(build_target(config, 0, torch.device("cpu"))).eval()


def embeddings_of(network):
    return torch.randn(5, network.embed_dim, generator=torch.Generator().manual_seed(1))


def test_rocls_head_is_two_linear_layers_without_norms():
    network = tiny_target(head="mlp2")
    embedding, head = embeddings_of(network), network.fc
    expected = (embedding @ head.fc1.weight.T + head.fc1.bias).clamp_min(0) @ head.fc2.weight.T + head.fc2.bias
    for branch in ("clean", "adv"):
        torch.testing.assert_close(network.project(embedding, branch), expected)
    assert not any(isinstance(module, nn.BatchNorm1d) for module in network.modules())


def test_advcls_head_has_one_norm_for_both_branches_and_unit_length():
    network = tiny_target(head="mlp2_bn")
    embedding, head = embeddings_of(network), network.fc
    hidden = embedding @ head.fc1.weight.T + head.fc1.bias
    norm = head.bn1
    hidden = (hidden - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    raw = hidden.clamp_min(0) @ head.fc2.weight.T + head.fc2.bias
    for branch in ("clean", "adv"):
        torch.testing.assert_close(network.project(embedding, branch), raw / raw.norm(dim=1, keepdim=True))
    assert [type(module) for module in network.modules()].count(nn.BatchNorm1d) == 1


@torch.no_grad()
@pytest.mark.parametrize("head", ["mlp3", "mlp2", "mlp2_bn"])
def test_every_head_can_be_folded_for_attacks(head):
    network = tiny_target(head=head)
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        Folded(network, branch="adv")(images), network(images, branch="adv"), rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
@pytest.mark.parametrize("normalize", ["none", "cifar10", "cifar100", "imagenet"])
def test_networks_normalise_as_they_are_told_and_exports_say_so(normalize, tmp_path):
    from astra_env.export import write_export

    network = tiny_target(normalize=normalize)
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mean, std = NORMALIZATIONS[normalize] or ((0.0,) * 3, (1.0,) * 3)
    expected = (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(network.normalize(images), expected)
    _, metadata = read_safetensors(write_export(fold_branch(network, "adv"), tmp_path, branch="adv"))
    assert metadata.normalize == (pytest.approx(mean), pytest.approx(std))


def test_views_are_made_as_configured():
    config = load_config(ExperimentConfig, "rocl")
    augment = build_augment(config, 32)
    assert (augment.interpolation, augment.color_first, augment.crop_scale) == ("bilinear", True, (0.08, 1.0))


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["acl", "dynacl", "rocl", "advcl", "deacl"])
def test_every_published_preset_trains_through_an_epoch_with_its_last_batch(name):
    config = load_config(ExperimentConfig, name)
    args = {**config.learner.objective_args, **OBJECTIVE_ARGS.get(name, {})}
    overrides = {
        "data": {"name": "digits", "image_size": 8, "max_images": 40},
        "device": "cpu",
        "target.width": 4,
        "target.blocks": [1, 1, 1, 1],
        "learner.batch_size": 16,
        "learner.epochs": 2,
        "learner.objective_args": args,
    }
    learner = ContrastiveLearner(load_config(ExperimentConfig, name, overrides))
    rest = len(learner.dataset) % 16
    assert rest > 1
    sizes = []
    attack = AttackStrategy.constant(1, 8 / 255, 1, 2 / 255)
    while not learner.finished:
        report = learner.step(attack)
        sizes.append(len(report.views))
        assert np.isfinite(report.scalars()["loss"])
    epoch = [32, 32] if config.learner.drop_last else [32, 32, 2 * rest]
    assert sizes == 2 * epoch
    assert learner.steps_per_epoch == len(epoch)


def policy_of(learner, name):
    return agents.make(name, context=agents.Context(learner.space, seed=3), **({"width": 4} if "re" in name else {}))


@pytest.mark.parametrize("name", ["random", "reinforce"])
@pytest.mark.parametrize("reward", ["per_view", "astra", "vs_fixed"])
def test_policies_attack_the_smaller_last_batch_and_runs_continue_across_it(name, reward):
    overrides = {"learner.drop_last": False, "learner.batch_size": 14, "learner.reward": reward}
    learner = make_learner("acl", **overrides)
    rest = len(learner.dataset) % 14
    assert (learner.steps_per_epoch, rest > 1) == (3, True)
    policy = policy_of(learner, name)
    for _ in range(2):
        interact(learner, policy)
    assert len(learner.views()) == 2 * rest  # saved with the incomplete batch in hand
    saved = copy.deepcopy(learner.state_dict()), copy.deepcopy(policy.state_dict())
    expected = [interact(learner, policy).scalars() for _ in range(3)]
    other = make_learner("acl", **overrides)
    other.load_state_dict(saved[0])
    other_policy = policy_of(other, name)
    other_policy.load_state_dict(saved[1])
    assert [interact(other, other_policy).scalars() for _ in range(3)] == expected


def test_an_environment_forked_before_the_last_batch_continues_identically():
    overrides = {**SMALL, "learner.drop_last": False, "learner.batch_size": 14, "env.chunk_steps": 1}
    env = AttackStrategyEnv("tiny", overrides)
    env.reset(seed=0)
    for _ in range(2):
        env.step(np.zeros(3, dtype=np.int64))
    twin = env.fork()
    for _ in range(2):
        first, second = env.step(np.ones(3, dtype=np.int64)), twin.step(np.ones(3, dtype=np.int64))
        assert np.array_equal(first[0], second[0])
        assert first[1] == second[1]


def test_a_last_batch_of_one_image_is_refused():
    config = load_config(ExperimentConfig, "tiny", {**SMALL, "learner.drop_last": False})
    dataset = make_learner().dataset.subset(torch.arange(17))
    with pytest.raises(ConfigError, match=r"learner.drop_last: 17 images leave a last batch of one"):
        ContrastiveLearner(config, dataset)


def test_accumulation_fits_into_the_last_batch_too():
    overrides = {"learner.drop_last": False, "learner.batch_size": 14}
    rest = len(make_learner().dataset) % 14
    with pytest.raises(ConfigError, match=f"learner.accumulate: expected at most the {rest} images"):
        make_learner(**overrides, **{"learner.accumulate": rest + 1})
    learner = make_learner(**overrides, **{"learner.accumulate": rest})
    for _ in range(3):
        learner.step(ATTACK)


def test_per_view_environments_need_whole_batches():
    with pytest.raises(ConfigError, match=r"learner.drop_last: every minibatch needs num_envs views"):
        InstanceAttackStrategyVectorEnv(8, "tiny", {"learner.drop_last": False})


def test_advcl_attacks_in_training_mode_and_both_kinds_of_view_are_batches_of_their_own():
    overrides = {"learner.attack_mode": "train", "target.head": "mlp2_bn", "target.norm": "branch"}
    learner = make_learner("advcl", **overrides)
    views = learner.batch().views
    twin = copy.deepcopy(learner.target).train()
    with torch.no_grad():
        expected = [twin(part, branch="adv") for part in (views[0::2], views[1::2])]
        learner.target.train()
        found = learner.objective.features(learner.objective.outputs(views, "adv"))
    torch.testing.assert_close(found[0::2], expected[0])
    torch.testing.assert_close(found[1::2], expected[1])
    counted = int(learner.target.bn1.bn_list[1].num_batches_tracked)
    learner.step(AttackStrategy.constant(1, 8 / 255, 3, 4 / 255))
    assert int(learner.target.bn1.bn_list[1].num_batches_tracked) == counted + 3 * 2 + 2
    assert int(learner.target.bn1.bn_list[0].num_batches_tracked) == 6
    steady = make_learner("advcl", **{**overrides, "learner.attack_mode": "eval"})
    steady.step(AttackStrategy.constant(1, 8 / 255, 3, 4 / 255))
    assert int(steady.target.bn1.bn_list[1].num_batches_tracked) == 2


@pytest.mark.parametrize("objective", ["astra", "advcl", "dynacl"])
def test_trying_an_attack_in_training_mode_leaves_no_trace(objective):
    learner = make_learner(objective, **{"learner.attack_mode": "train"})
    learner.step(ATTACK)
    before = buffers(learner.target, learner.final_network)
    learner.try_attack(ATTACK)
    assert torch.equal(before, buffers(learner.target, learner.final_network))


def test_the_same_learning_rate_holds_for_an_epoch():
    learner = make_learner(**{"learner.schedule": "epoch", "learner.warmup_epochs": 2, "learner.total_steps": 20})
    length = learner.steps_per_epoch
    assert length > 2
    rates = []
    for _ in range(3 * length):
        rates.append(learner.step(ATTACK).learning_rate)
    assert [len(set(rates[k * length : (k + 1) * length])) for k in range(3)] == [1, 1, 1]
    assert rates[0] == pytest.approx(0.5 * learner.config.learner.learning_rate)
    assert rates[length] == rates[2 * length] == learner.config.learner.learning_rate


def watched(learner):
    """Return the list that collects what the attack's forward passes are given."""
    seen, outputs = [], learner.objective.outputs
    learner.objective.outputs = lambda views, branch: (seen.append(views.detach().clone()), outputs(views, branch))[1]
    return seen


@pytest.mark.parametrize(
    ("objective", "leaves"),
    [("astra", False), ("rocl", False), ("acl", True), ("dynacl", True), ("deacl", True), ("advcl", True)],
)
def test_the_network_first_sees_the_start_clipped_or_as_it_is(objective, leaves):
    learner = make_learner(objective)
    seen = watched(learner)
    learner.step(ATTACK)
    assert bool((seen[0] < -1 / 255).any()) is leaves
    assert all((views >= 0).all() and (views <= 1).all() for views in seen[1:])


def test_dynacls_views_keep_their_order_when_some_are_attacked_longer():
    learner = make_learner("dynacl")
    seen, views = watched(learner), learner.batch().views
    strategy = AttackStrategy.constant(16, 8 / 255, 1, 4 / 255)
    strategy.steps[[1, 6]] = 3
    learner.step(strategy)
    assert len(seen) == 3 + 1 + 1  # three steps, the final features, the clean ones
    assert all(((found - views).abs() <= 8 / 255 + 1e-6).all() for found in seen)
