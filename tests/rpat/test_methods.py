"""Each method against its formula, and what it pays for it."""

import copy

import pytest
import torch
import torch.nn.functional as F

from astra_env.attacks import KLDivergence, supervised_attack
from astra_env.errors import ConfigError, InputError
from astra_env.models import resnet18
from astra_env.strategy import Attack
from rpat.losses import jensen_shannon, mart_loss, rebat_kl, rpat_plus_plus_loss, trades_kl
from rpat.methods import (
    METHODS,
    Method,
    Progress,
    RobustPerception,
    Step,
    make_method,
)

BUDGET = Attack(8 / 255, 2 / 255, 3, "linf")
PERCEPTION = RobustPerception(weight=0.7, rate=0.3)


class Halved(Method):
    """A user's own method: half the cross-entropy."""

    def loss(self, step):
        return {"half": F.cross_entropy(step.adv_logits, step.labels) / 2}


def network(seed=0):
    return resnet18(4, width=2, generator=torch.Generator().manual_seed(seed)).double().train()


def make_step(model, *, perception=PERCEPTION, average=None, rows=8, progress=None):
    source = torch.Generator().manual_seed(5)
    images = torch.rand(rows, 3, 8, 8, generator=source, dtype=torch.float64)
    labels = torch.randint(4, (rows,), generator=source)
    step = Step(
        model,
        images,
        labels,
        BUDGET,
        generator=torch.Generator().manual_seed(7),
        perception=perception,
        average=average,
        progress=progress,
    )
    step.adversarial = (images + 0.02 * torch.randn(images.shape, generator=source, dtype=torch.float64)).clamp(0, 1)
    return step


def train_logits(model, images):
    return copy.deepcopy(model).train()(images)


def expected_perception(step):
    rate = PERCEPTION.rate
    clean, adv = train_logits(step.model, step.images), train_logits(step.model, step.adversarial)
    mix = train_logits(step.model, rate * step.images + (1 - rate) * step.adversarial)
    return PERCEPTION.weight * (mix - rate * clean - (1 - rate) * adv).square().mean()


@pytest.mark.parametrize("name", ["pgd_at", "trades", "mart", "consistency"])
def test_terms_follow_the_formula_and_robust_perception_is_added(name):
    step = make_step(network())
    clean, adv = train_logits(step.model, step.images), train_logits(step.model, step.adversarial)
    bce, weighted = mart_loss(adv, clean, step.labels)
    expected = {
        "pgd_at": F.cross_entropy(adv, step.labels),
        "trades": F.cross_entropy(clean, step.labels) + 6 * trades_kl(adv, clean),
        "mart": bce + 6 * weighted,
        "consistency": F.cross_entropy(adv, step.labels) + jensen_shannon(adv[:4], adv[4:]),
    }[name] + expected_perception(step)
    assert sum(make_method(name).terms(step).values()).item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize(("name", "key"), [("trades", "beta"), ("mart", "beta"), ("consistency", "weight")])
def test_weight_of_the_regulariser_scales_its_term_alone(name, key):
    terms = {weight: make_method(name, {key: weight}).loss(make_step(network())) for weight in (1.0, 3.0)}
    names = list(terms[1.0])
    assert terms[3.0][names[0]].item() == pytest.approx(terms[1.0][names[0]].item())
    assert terms[3.0][names[1]].item() == pytest.approx(3 * terms[1.0][names[1]].item())


@pytest.mark.parametrize("name", ["pgd_at", "trades", "mart", "consistency"])
def test_without_robust_perception_the_mixed_images_are_never_seen(name):
    step = make_step(network(), perception=None)
    assert "robust_perception" not in make_method(name).terms(step)
    assert "mix_logits" not in step.__dict__


@pytest.mark.parametrize(("name", "forwards"), [("pgd_at", 3), ("trades", 3), ("mart", 3), ("consistency", 3)])
def test_every_input_is_forwarded_once_with_gradient_and_apart_from_the_others(name, forwards):
    step, calls = make_step(network()), []
    step.model.register_forward_hook(
        lambda module, inputs, output: calls.append((len(inputs[0]), output.requires_grad))
    )
    make_method(name).terms(step)
    assert [rows for rows, learned in calls if learned] == [8] * forwards
    assert [rows for rows, learned in calls if not learned] == ([8] if name == "trades" else [])


def test_rebat_pulls_towards_the_average_and_robust_perception_replaces_the_pull():
    model, average = network(), network(1).eval()
    method = make_method("rebat", {"weight": 2.0})
    step = make_step(model, perception=None, average=average)
    adv = train_logits(model, step.adversarial)
    pull = rebat_kl(adv, average(step.adversarial))
    expected = F.cross_entropy(adv, step.labels) + 2 * pull
    assert sum(method.terms(step).values()).item() == pytest.approx(expected.item())

    step = make_step(model, average=average)
    mixed = 0.3 * step.images + 0.7 * step.adversarial
    pull = rpat_plus_plus_loss(train_logits(model, step.adversarial), average(mixed), average(step.images), 0.3)
    expected = F.cross_entropy(train_logits(model, step.adversarial), step.labels) + 2 * 0.7 * pull
    assert sum(method.terms(step).values()).item() == pytest.approx(expected.item())


def test_rebat_is_plain_adversarial_training_before_the_average_starts_and_sends_it_no_gradient_after():
    step = make_step(network())
    assert list(make_method("rebat").terms(step)) == ["cross_entropy"]
    with pytest.raises(InputError, match="has not started"):
        step.average_logits(step.images)
    average = network(1).eval()
    step = make_step(network(), average=average)
    sum(make_method("rebat").terms(step).values()).backward()
    assert all(parameter.grad is None for parameter in average.parameters())


def test_rebat_schedules_and_the_stronger_late_attack():
    early = Progress(epoch=99, epochs=200, milestones=(100, 150), learning_rate=1.0)
    middle = Progress(epoch=100, epochs=200, milestones=(100, 150), learning_rate=1 / 1.5)
    late = Progress(epoch=150, epochs=200, milestones=(100, 150), learning_rate=1 / 2.25)
    stronger = make_method("rebat", {"stronger_attack": True})
    assert stronger.budget(BUDGET, early) == BUDGET
    assert stronger.budget(BUDGET, middle) == Attack(10 / 255, 2 / 255, 12, "linf")
    assert make_method("rebat").budget(BUDGET, late) == BUDGET
    pulls = {
        schedule: [make_method("rebat", {"schedule": schedule}).pull(at) for at in (early, middle, late)]
        for schedule in ("constant", "piecewise", "dependent")
    }
    assert pulls["constant"] == [1, 1, 1]
    assert pulls["piecewise"] == [1, 1, 1.5]
    assert pulls["dependent"] == pytest.approx([0, 0.25, 0.625])


def test_trades_ascends_the_divergence_from_near_the_image_in_eval_mode():
    model, source = network(), torch.Generator().manual_seed(7)
    step = make_step(model)
    ours = make_method("trades").attack(step)
    start = 0.001 * torch.randn(step.images.shape, generator=source).double()
    with torch.no_grad():
        clean = copy.deepcopy(model).eval()(step.images)
    attack = {"init": start, "objective": KLDivergence(clean), "clip_start": False}
    expected = supervised_attack(model, step.images, step.labels, step.strategy, **attack).adversarial
    assert torch.equal(ours, expected)
    assert model.training


def test_mart_starts_near_the_image_and_ascends_the_cross_entropy():
    model, source = network(), torch.Generator().manual_seed(7)
    step = make_step(model)
    start = 0.001 * torch.randn(step.images.shape, generator=source).double()
    attack = {"init": start, "clip_start": False}
    expected = supervised_attack(model, step.images, step.labels, step.strategy, **attack).adversarial
    assert torch.equal(make_method("mart").attack(step), expected)


def test_a_users_class_is_a_method_with_robust_perception_for_free():
    step = make_step(network())
    terms = make_method(f"{__name__}:Halved").terms(step)
    half = F.cross_entropy(train_logits(step.model, step.adversarial), step.labels) / 2
    assert sum(terms.values()).item() == pytest.approx((half + expected_perception(step)).item())


def test_bad_methods_and_arguments_are_named():
    with pytest.raises(ConfigError, match=r"method: expected one of consistency, .* got 'free'"):
        make_method("free")
    with pytest.raises(ConfigError, match="method: expected a subclass"):
        make_method("collections:OrderedDict")
    with pytest.raises(ConfigError, match=r"method_args.gamma: trades has no such argument; it takes beta"):
        make_method("trades", {"gamma": 1})
    with pytest.raises(ConfigError, match=r"method_args.beta: expected a number >= 0, got -1"):
        make_method("trades", {"beta": -1})
    with pytest.raises(ConfigError, match=r"method_args.views: consistency compares 2 views of every image, got 1"):
        make_method("consistency", {"views": 1})
    with pytest.raises(ConfigError, match=r"method_args.schedule: expected one of constant"):
        make_method("rebat", {"schedule": "cosine"})
    assert list(METHODS) == ["consistency", "mart", "pgd_at", "rebat", "trades"]
