"""The self-supervised family: every method against its formula, written out again in float64, and as part of a run."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

import agents
from astra_env.attacks import frozen
from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig
from astra_env.errors import CheckpointError, ConfigError
from astra_env.evaluation.campaign.loading import load_network
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.losses import barlow_twins, multi_view_nt_xent, nt_xent
from astra_env.objectives import OBJECTIVES, Batch
from astra_env.objectives.advcl import high_frequencies
from astra_env.strategy import AttackStrategy, StrategySpace

SMALL = {"learner.batch_size": 8, "data.max_images": 64}
ATTACK = AttackStrategy.constant(1, 8 / 255, 2, 4 / 255)
ARGUMENTS = {"advcl": {"clusters": [2, 5]}, "deacl": {"teacher_steps": 2}}


def make_learner(objective, **overrides):
    arguments = {"learner.objective_args": ARGUMENTS.get(objective, {})}
    return ContrastiveLearner(
        load_config(ExperimentConfig, "tiny", {"learner.objective": objective, **SMALL, **arguments, **overrides})
    )


class Features:
    """An encoder whose features depend on nothing but a table: rows are told apart by their first pixel."""

    autocast = None

    def __init__(self, size=6):
        self.matrix = torch.randn(3 * 4 * 4, size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def __call__(self, views, branch):
        return views.flatten(1).double() @ self.matrix * (2.0 if branch == "adv" else 1.0) + views.flatten(1)[:, :6]

    embed = __call__

    def project(self, embedding, branch):
        return embedding


def views_of(count, seed):
    return torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def similarities(features, temperature=0.5):
    """exp of the cosine over temperature, by hand, in numpy."""
    f = features.double().numpy()
    f = f / np.linalg.norm(f, axis=1, keepdims=True)
    return np.exp(f @ f.T / temperature)


def contrast(features, positives):
    """-log of each (anchor, positive) share, positives given as a list of index lists; in numpy."""
    e = similarities(features)
    return [[-math.log(e[a, p] / (e[a].sum() - e[a, a])) for p in mine] for a, mine in enumerate(positives)]


def pair_loss(features):
    return float(np.mean(contrast(features, [[i ^ 1] for i in range(len(features))])))


def test_nt_xent_of_two_views_is_the_multi_view_loss_and_of_three_the_formula():
    features = torch.randn(5, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    two = features[:, :2]
    torch.testing.assert_close(multi_view_nt_xent(two), nt_xent(two.flatten(0, 1)))
    positives = [[3 * (i // 3) + k for k in range(3) if k != i % 3] for i in range(15)]
    terms = np.array(contrast(features.flatten(0, 1), positives))
    assert multi_view_nt_xent(features, positives="sum").item() == pytest.approx(terms.sum(1).mean(), rel=1e-12)
    assert multi_view_nt_xent(features).item() == pytest.approx(terms.mean(), rel=1e-12)


def test_barlow_twins_is_the_published_sum_over_correlations_by_feature():
    source = torch.Generator().manual_seed(0)
    first, second = (torch.randn(20, 4, generator=source, dtype=torch.float64) for _ in range(2))
    correlation = np.corrcoef(first.numpy().T, second.numpy().T)[:4, 4:]
    expected = ((1 - np.diag(correlation)) ** 2).sum()
    expected += 0.1 * (correlation[~np.eye(4, dtype=bool)] ** 2).sum()
    assert barlow_twins(first, second, 0.1).item() == pytest.approx(expected / 4, rel=1e-3)
    assert barlow_twins(first, first).item() < barlow_twins(first, second).item()


def test_acl_is_half_of_each_stream():
    learner, encode = make_learner("acl"), Features()
    clean, adv = views_of(8, 0), views_of(8, 1)
    expected = (pair_loss(encode(clean, "clean")) + pair_loss(encode(adv, "adv"))) / 2
    assert learner.objective(encode, Batch(clean, torch.arange(4)), adv).total.item() == pytest.approx(expected)


def test_rocl_joins_three_views_and_adds_a_256th_of_the_attacked_pair():
    learner, encode = make_learner("rocl"), Features()
    clean, adv = views_of(8, 0), views_of(8, 1)
    rows = torch.cat((clean[0::2], clean[1::2], adv[0::2]))
    features = encode(rows, "adv")
    positives = [[(i + 4) % 12, (i + 8) % 12] for i in range(12)]
    expected = np.array(contrast(features, positives)).sum(1).mean()
    pair = torch.stack((features[8:], features[4:8]), 1).flatten(0, 1)
    expected += pair_loss(pair) / 256
    assert learner.objective(encode, Batch(clean, torch.arange(4)), adv).total.item() == pytest.approx(expected)


def test_rocl_attacks_the_first_views_only():
    learner = make_learner("rocl")
    report = learner.step(AttackStrategy.constant(16, 8 / 255, 3, 4 / 255))
    moved = (report.adversarial - report.views).abs().flatten(1).amax(1)
    assert (moved[0::2] > 4 / 255).all()
    assert (moved[1::2] == 0).all()
    assert int(learner.attack_steps) == 8 * 3


def test_rocl_drives_the_first_view_from_the_clean_second_one():
    learner = make_learner("rocl", **{"learner.learning_rate": 0.001})
    batch = learner.batch()
    adversarial = learner.adversary.attack(
        batch, learner.objective.budgets(AttackStrategy.constant(16, 16 / 255, 4, 8 / 255))
    )
    with frozen(learner.target), torch.no_grad():
        clean = nt_xent(learner.target(batch.views, branch="adv"))
        attacked = nt_xent(learner.target(adversarial.adversarial, branch="adv"))
    assert attacked > clean + 0.05


@pytest.mark.parametrize(
    ("epoch", "strength", "weight"),
    [
        (1, 1.0, 1.0),
        (49, 1.0, 1.0),
        (50, 1.0, 1 + 50 / 1000 * 2 / 3),
        (51, 0.95, 1 + 50 / 1000 * 2 / 3),
        (501, 0.5, 1 + 500 / 1000 * 2 / 3),
        (1000, 0.05, 1 + 2 / 3),
    ],
)
def test_dynacl_follows_the_published_schedule(epoch, strength, weight):
    objective = make_learner("dynacl").objective
    assert objective.strength(epoch) == pytest.approx(strength)
    assert objective.weight(epoch) == pytest.approx(weight)


def test_dynacl_divides_a_training_of_any_length_into_the_schedule():
    objective = make_learner("dynacl", **{"learner.total_steps": 40}).objective
    assert [objective.epoch(step) for step in (0, 1, 2, 39, 40)] == [1, 26, 51, 976, 1000]


def test_dynacl_weakens_the_augmentation():
    learner = make_learner("dynacl", **{"learner.total_steps": 40})
    first, middle = (learner.objective.augmentation(learner.base_augment, step) for step in (0, 20))
    assert first.crop_scale == pytest.approx(learner.base_augment.crop_scale)
    assert first.jitter == learner.base_augment.jitter
    assert middle.crop_scale == pytest.approx((1 - 0.9 * 0.5, 1.0))
    assert middle.jitter == pytest.approx((0.2, 0.2, 0.2, 0.05))
    assert (middle.jitter_probability, middle.grayscale_probability) == pytest.approx((0.4, 0.1))


def test_dynacl_weighs_the_streams_and_sends_second_views_through_the_momentum_encoder():
    learner = make_learner("dynacl", **{"learner.total_steps": 40})
    for _ in range(3):
        learner.step(ATTACK)
    online, followed = copy.deepcopy(learner.target).train(), copy.deepcopy(learner.objective.momentum_encoder).train()
    clean, adv = learner.batch().views, torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    batch = Batch(clean, torch.arange(8), step=21)
    loss = learner.objective(learner.encode, batch, adv)
    streams = []
    for views, branch in ((adv, "adv"), (clean, "clean")):
        pairs = torch.stack((online(views[0::2], branch=branch), followed(views[1::2], branch=branch)), 1)
        streams.append(pair_loss(pairs.flatten(0, 1).detach()))
    weight = 1 + 10 * 50 / 1000 * 2 / 3  # epoch 526 of the schedule
    expected = ((2 - weight) * streams[1] + weight * streams[0]) / 2
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    loss.total.backward()
    assert all(p.grad is None for p in learner.objective.momentum_encoder.parameters())


def test_the_momentum_encoder_follows_and_is_what_gets_evaluated(tmp_path):
    learner = make_learner("dynacl")
    before = learner.objective.momentum_encoder.conv1.weight.clone()
    learner.objective.updates = 10_000
    learner.step(ATTACK)
    expected = 0.99 * before + 0.01 * learner.target.conv1.weight
    torch.testing.assert_close(learner.final_network.conv1.weight, expected)
    torch.save(learner.state_dict(), tmp_path / "last.pt")
    assert torch.equal(load_network(tmp_path / "last.pt").network.conv1.weight, learner.final_network.conv1.weight)
    trained = load_network(tmp_path / "last.pt", weights="target").network
    assert torch.equal(trained.conv1.weight, learner.target.conv1.weight)


def test_high_frequencies_are_what_a_low_pass_leaves():
    size, radius = 8, 2.0
    images = views_of(2, 0).repeat(1, 1, 2, 2)[:, :, :size, :size]
    frequency = np.fft.fftfreq(size) * size
    mask = np.hypot(frequency[:, None], frequency[None]) < radius
    low = np.fft.ifft2(np.fft.fft2(images.numpy()) * mask).real
    assert high_frequencies(images, radius).numpy() == pytest.approx(images.numpy() - low, abs=1e-5)


def test_advcl_joins_four_views_and_predicts_pseudo_labels():
    learner, encode = make_learner("advcl"), Features()
    objective = learner.objective
    objective.heads = torch.nn.ModuleList(torch.nn.Linear(6, k, dtype=torch.float64) for k in objective.clusters)
    objective.prepare()
    assert [int(labels.max()) + 1 for labels in objective.labels] == [2, 5]
    clean, adv, rows = views_of(8, 0), views_of(8, 1), torch.tensor([3, 9, 1, 7])
    high = high_frequencies(clean[0::2], 8 * 4 / 32)
    parts = (
        encode(adv, "adv")[0::2],
        encode(clean, "clean")[0::2],
        encode(clean, "clean")[1::2],
        encode(high, "clean"),
    )
    features = torch.stack(parts, 1).flatten(0, 1)
    positives = [[4 * (i // 4) + k for k in range(4) if k != i % 4] for i in range(16)]
    expected = np.array(contrast(features, positives)).mean()
    entropies = []
    for head, labels in zip(objective.heads, objective.labels, strict=True):
        logits = (encode(adv, "adv")[1::2] @ head.weight.T + head.bias).detach().numpy()
        right = logits[np.arange(4), labels[rows].numpy()]
        entropies.append(np.mean(np.log(np.exp(logits).sum(1)) - right))
    loss = objective(encode, Batch(clean, rows), adv).total.item()
    assert loss == pytest.approx(0.5 / 0.07 * expected + 0.2 * np.mean(entropies), rel=1e-5)


def test_advcl_attacks_one_view_against_the_contrast_and_the_other_against_its_labels():
    learner = make_learner("advcl")
    for _ in range(2):
        learner.step(ATTACK)
    batch = learner.batch()
    goal = learner.objective.attack_goal(batch)
    attacked = learner.adversary.attack(batch, AttackStrategy.constant(16, 16 / 255, 4, 8 / 255)).adversarial
    with frozen(learner.target), torch.no_grad():
        clean, moved = (learner.objective.outputs(views, "adv") for views in (batch.views, attacked))
    for rows in (slice(0, None, 2), slice(1, None, 2)):
        half = clean.clone()
        half[rows] = moved[rows]
        assert goal(half) > goal(clean) + 1e-3


def test_deacl_follows_the_teacher_and_holds_on_to_itself():
    learner = make_learner("deacl")
    objective, encode = learner.objective, Features()
    objective.teacher.embed = lambda views, branch: views.flatten(1)[:, 10:16]
    clean, adv = views_of(8, 0), views_of(8, 1)
    student, attacked, teacher = encode(clean, "adv"), encode(adv, "adv"), clean.flatten(1)[:, 10:16]
    cosine = lambda a, b: (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))  # noqa: E731
    expected = -cosine(student, teacher).mean() - 2 * cosine(attacked, student).mean()
    loss = objective(encode, Batch(clean, torch.arange(4)), adv).total
    torch.testing.assert_close(loss, expected)


def test_deacl_attack_leaves_the_teacher_and_the_reward_says_how_far():
    learner = make_learner("deacl")
    learner.step(ATTACK)
    teacher = copy.deepcopy(learner.objective.teacher)
    student = copy.deepcopy(learner.target)
    report = learner.step(AttackStrategy.constant(1, 16 / 255, 4, 8 / 255))
    with frozen(student), torch.no_grad():
        taught = teacher.embed(report.views, "clean")
        near, far = (
            cosine_similarity(student.embed(v, "adv"), taught).mean() for v in (report.views, report.adversarial)
        )
    assert far < near - 0.01
    torch.testing.assert_close(report.reward.mean(), (near - far) / 3, rtol=1e-3, atol=1e-5)


def test_deacls_teacher_is_trained_once_frozen_and_in_the_checkpoint(tmp_path):
    learner = make_learner("deacl")
    untrained = copy.deepcopy(learner.objective.teacher.state_dict())
    learner.step(ATTACK)
    taught = copy.deepcopy(learner.objective.teacher.state_dict())
    assert not torch.equal(untrained["conv1.weight"], taught["conv1.weight"])
    for _ in range(2):
        learner.step(ATTACK)
    saved = learner.state_dict()["objective"]["teacher"]
    assert all(torch.equal(saved[name], taught[name]) for name in taught)
    torch.save({"target": taught}, tmp_path / "teacher.pt")
    given = make_learner("deacl", **{"learner.objective_args": {"teacher": str(tmp_path / "teacher.pt")}})
    given.step(ATTACK)
    assert torch.equal(given.objective.teacher.conv1.weight, taught["conv1.weight"])


def test_deacls_teacher_gets_three_times_the_students_steps_and_continues_where_it_was_saved():
    long = {"learner.objective_args": {}, "learner.total_steps": 2}
    learner = make_learner("deacl", **long)
    assert learner.left_to_prepare == 6
    for _ in range(3):
        learner.prepare()
    half = copy.deepcopy(learner.state_dict())
    other = make_learner("deacl", **long)
    other.load_state_dict(half)
    assert other.left_to_prepare == 3
    other.step(ATTACK)
    learner.load_state_dict(half)  # what was loaded is as it was, however far the other one has come
    learner.step(ATTACK)
    assert learner.left_to_prepare == other.left_to_prepare == 0
    first, second = learner.objective.teacher.state_dict(), other.objective.teacher.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], half["objective"]["teacher"]["conv1.weight"])
    assert not any(parameter.requires_grad for parameter in learner.objective.teacher.parameters())
    assert learner.state_dict()["objective"]["teaching"] == {}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"taught": 7}, "objective.taught: expected at most 6, got 7"),
        ({"teaching": {}}, "does not fit this learner .*optimizer"),
        ({"teaching": None}, "objective.teaching: expected a mapping"),
    ],
)
def test_a_half_trained_teacher_without_the_rest_of_its_training_is_refused(damage, message):
    learner = make_learner("deacl", **{"learner.objective_args": {}, "learner.total_steps": 2})
    learner.prepare()
    state = copy.deepcopy(learner.state_dict())
    with pytest.raises(CheckpointError, match=message):
        learner.load_state_dict({**state, "objective": {**state["objective"], **damage}})
    assert learner.left_to_prepare == 5


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_every_objective_trains_saves_and_continues_bit_for_bit(name):
    learner = make_learner(name)
    for _ in range(3):
        scalars = learner.step(ATTACK).scalars()
        assert all(math.isfinite(value) for value in scalars.values())
    saved = copy.deepcopy(learner.state_dict())
    expected = [learner.step(ATTACK).scalars() for _ in range(2)]
    other = make_learner(name)
    other.load_state_dict(saved)
    assert [other.step(ATTACK).scalars() for _ in range(2)] == expected
    first, second = learner.state_dict(), other.state_dict()
    assert int(first["attack_steps"]) == int(second["attack_steps"])
    assert all(torch.equal(first["target"][key], second["target"][key]) for key in first["target"])


@pytest.mark.parametrize("name", ["dynacl", "deacl", "advcl"])
def test_a_damaged_objective_is_refused_and_nothing_changes(name):
    learner = make_learner(name)
    learner.step(ATTACK)
    good = copy.deepcopy(learner.state_dict())
    for damage in ({}, None, {**good["objective"], **dict.fromkeys(list(good["objective"])[:1])}):
        with pytest.raises(CheckpointError, match="objective"):
            learner.load_state_dict({**copy.deepcopy(good), "objective": damage})
    if name == "advcl":
        bad = copy.deepcopy(good)
        bad["objective"]["labels"][0][0] = 99
        with pytest.raises(CheckpointError, match=r"labels.0: expected clusters 0\.\.1"):
            learner.load_state_dict(bad)
    assert torch.equal(learner.target.conv1.weight, good["target"]["conv1.weight"])


def test_another_objectives_state_is_refused():
    learner = make_learner("dynacl")
    with pytest.raises(CheckpointError, match="objective: holds momentum_encoder, updates, which this config"):
        make_learner("acl").load_state_dict(learner.state_dict())


@pytest.mark.parametrize(
    ("objective", "arguments", "message"),
    [
        ("acl", {"weight": 1}, "learner.objective_args.weight: learner.objective 'acl' has no arguments"),
        ("dynacl", {"momentun": 0.9}, "learner.objective_args.momentun: unknown .* did you mean 'momentum'"),
        ("dynacl", {"momentum": "fast"}, "learner.objective_args.momentum: expected float, got fast"),
        ("dynacl", {"momentum": 1.0}, r"learner.objective_args.momentum: expected a number in \[0, 1\), got 1.0"),
        ("dynacl", {"refresh": 0}, "learner.objective_args.refresh: expected an integer >= 1, got 0"),
        ("rocl", {"regularization": -1.0}, "learner.objective_args.regularization: expected a finite number >= 0"),
        ("advcl", {"clusters": [1]}, "learner.objective_args.clusters: expected integers >= 2"),
        ("deacl", {"teacher_steps": 0}, "learner.objective_args.teacher_steps: expected an integer >= 1"),
        ("barlow", {"redundancy": -1.0}, "learner.objective_args.redundancy: expected a finite number >= 0"),
    ],
)
def test_bad_arguments_are_named_in_one_line(objective, arguments, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_learner(objective, **{"learner.objective_args": arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["advcl", "deacl"])
def test_attacks_on_more_than_projected_features_cannot_be_folded(name):
    with pytest.raises(ConfigError, match=r"learner.fold_batchnorm: learner.objective"):
        make_learner(name, **{"learner.fold_batchnorm": True})


def test_attack_steps_count_every_views_gradient_steps():
    learner = make_learner("acl")
    strategy = AttackStrategy.constant(16, 8 / 255, 2, 4 / 255)
    strategy.steps[0] = 5
    learner.step(strategy)
    learner.step(ATTACK)
    assert int(learner.attack_steps) == (15 * 2 + 5) + 16 * 2
    assert int(make_learner("simclr").attack_steps) == 0


def test_views_are_normalised_in_no_loss_twice():
    """Cosine losses do not see the features' length."""
    features = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(nt_xent(features), nt_xent(normalize(features) * 7))


@pytest.mark.parametrize("name", ["acl", "dynacl", "rocl", "advcl", "deacl"])
def test_the_published_settings_are_a_preset_whose_attack_is_on_its_grids(name):
    config = load_config(ExperimentConfig, name)
    space = StrategySpace(config.strategy.epsilon, config.strategy.steps, config.strategy.step_size)
    attack = space.decode(agents.make("fixed", context=agents.Context(space), **config.policy_args).action)
    epsilon, steps, step_size = {"rocl": (0.0314, 7, 0.007)}.get(name, (8 / 255, 5, 2 / 255))
    assert (config.learner.objective, config.policy) == (name, "fixed")
    assert int(attack.steps) == steps
    assert (float(attack.epsilon), float(attack.step_size)) == pytest.approx((epsilon, step_size), rel=1e-6)
