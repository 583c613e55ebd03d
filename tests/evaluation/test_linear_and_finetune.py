"""Linear probes and fine-tuning: the published recipe, a frozen encoder, training that continues exactly."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from astra_env.data import label_fraction
from astra_env.errors import CheckpointError, DataError, InputError
from astra_env.evaluation import (
    EncoderClassifier,
    clean_accuracy,
    finetune,
    linear_probe,
    probe,
    robust_accuracy,
)
from astra_env.evaluation.measures.batches import shuffled_batches
from astra_env.evaluation.probes.finetuning import trades_attack, trades_loss
from astra_env.evaluation.probes.linear import TRAINING_ATTACK, label_attack
from astra_env.models import TargetNetwork
from astra_env.storage.checkpoint import load_checkpoint
from astra_env.strategy import Attack

NO_ATTACK = Attack(0, 0, 0)
ONE_STEP = replace(TRAINING_ATTACK, steps=1)


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model, before):
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_probe_is_the_published_sgd_on_frozen_features(target, digits):
    train = digits[0].subset(torch.arange(200))
    probed = linear_probe(target, train, epochs=5, learning_rate=0.3, batch_size=64, augment=False, seed=4)
    with torch.no_grad():
        features = target.eval().embed(train.images.float() / 255, "adv")
    weight, bias = torch.zeros(10, 32 // 4), torch.zeros(10)
    speed = [torch.zeros_like(weight), torch.zeros_like(bias)]
    generator = torch.Generator().manual_seed(4)
    for epoch in range(5):
        rate = 0.3 * 0.1 ** ((epoch >= 2) + (epoch >= 4))
        for rows in torch.randperm(200, generator=generator).split(64):
            error = (features[rows] @ weight.T + bias).softmax(1) - F.one_hot(train.labels[rows], 10)
            gradients = (error.T @ features[rows] / len(rows) + 2e-4 * weight, error.mean(0) + 2e-4 * bias)
            for index, gradient in enumerate(gradients):
                speed[index] = 0.9 * speed[index] + gradient
            weight, bias = weight - rate * speed[0], bias - rate * speed[1]
    assert torch.allclose(probed.head.weight, weight, atol=1e-5)
    assert torch.allclose(probed.head.bias, bias, atol=1e-5)
    assert float(weight.abs().max()) > 0.01


def test_streamed_features_train_the_same_head_as_cached_ones(target, digits):
    train = digits[0].subset(torch.arange(100))
    settings = {"epochs": 1, "augment": False, "batch_size": 32}
    cached = linear_probe(target, train, **settings)
    streamed = linear_probe(target, train, attack=NO_ATTACK, **settings)
    assert torch.allclose(cached.head.weight, streamed.head.weight, atol=1e-6)


@pytest.mark.parametrize("settings", [{"augment": True}, {"attack": TRAINING_ATTACK}])
def test_probing_leaves_the_encoder_and_the_global_random_state_alone(target, digits, settings):
    target.train()
    before, random = snapshot(target), torch.random.get_rng_state()
    linear_probe(target, digits[0].subset(torch.arange(64)), epochs=1, **settings)
    assert unchanged(target, before)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(parameter.requires_grad for parameter in target.parameters())


def test_the_probe_uses_the_branch_it_is_told(target, digits):
    with torch.no_grad():
        target.bn1.bn_list[1].weight.fill_(0)
        target.bn1.bn_list[1].bias.fill_(0)
    train = digits[0].subset(torch.arange(200))
    blind = linear_probe(target, train, branch="adv", epochs=3, augment=False, learning_rate=1.0)
    seeing = linear_probe(target, train, branch="clean", epochs=3, augment=False, learning_rate=1.0)
    with torch.no_grad():
        spread = [float(probed(train.images[:8].float() / 255).std(0).max()) for probed in (blind, seeing)]
    assert spread[0] < 1e-6
    assert spread[1] > 1e-3


def test_adversarial_probing_trains_on_features_of_attacked_images(target, digits):
    train = digits[0].subset(torch.arange(100))
    settings = {"epochs": 2, "augment": False, "learning_rate": 1.0, "batch_size": 25}
    clean = linear_probe(target, train, **settings)
    noise = linear_probe(target, train, attack=replace(TRAINING_ATTACK, steps=0), **settings)
    attacked = linear_probe(target, train, attack=TRAINING_ATTACK, **settings)
    for one, other in ((clean, noise), (noise, attacked), (clean, attacked)):
        assert not torch.allclose(one.head.weight, other.head.weight, atol=1e-5)


def test_probe_reports_clean_and_robust_accuracy_by_radius(small_net, digits):
    attacks = [Attack.crossing(radius, 5) for radius in (8 / 255, 40 / 255)]
    result = probe(small_net, *digits, attacks, augment=False, learning_rate=0.1)
    assert result.clean == clean_accuracy(result.classifier, digits[1])
    assert result.clean.value > 0.9
    assert result.clean.correct > result.robust[8 / 255].correct > result.robust[40 / 255].correct
    assert result.robust[8 / 255] == robust_accuracy(result.classifier, digits[1], attacks[0])


def test_an_encoder_of_nan_weights_is_an_error(target, digits):
    with torch.no_grad():
        target.conv1.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="encoder features: expected finite"):
        linear_probe(target, digits[0], augment=False)


def test_something_without_embeddings_is_an_error(digits):
    with pytest.raises(InputError, match="embed"):
        linear_probe(nn.Linear(2, 2), digits[0])


def test_a_label_fraction_that_empties_a_class_is_an_error(digits):
    with pytest.raises(DataError, match=r"leaves none; use at least"):
        label_fraction(digits[0], 0.001, seed=0)


@pytest.mark.parametrize("natural", ["clean", "adv"])
def test_trades_is_its_formula_with_the_natural_images_in_either_branch(target, digits, natural):
    classifier = EncoderClassifier(target, 10).double().eval()
    nn.init.normal_(classifier.head.weight, generator=torch.Generator().manual_seed(0))
    images = digits[0].images[:6].double() / 255
    adversarial = (images + 0.1).clamp(0, 1)
    labels = digits[0].labels[:6]
    with torch.no_grad():
        for norm in (target.bn1.bn_list[1], target.layer1[0].bn1.bn_list[1]):
            norm.bias.add_(0.3)
        clean, attacked = classifier(images, natural).softmax(1), classifier(adversarial, "adv").softmax(1)
        expected = 0.0
        for row in range(6):
            divergence = (clean[row] * (clean[row] / attacked[row]).log()).sum()
            expected += (-clean[row, labels[row]].log() + 6 * divergence) / 6
        found = trades_loss(classifier, images, adversarial, labels, 6.0, natural_branch=natural)
        assert float(found) == pytest.approx(float(expected), rel=1e-9)


def test_fine_tuning_trains_both_branches_of_a_copy(target, digits):
    before = snapshot(target)
    train = digits[0].subset(torch.arange(96))
    tuned = finetune(target, train, epochs=1, batch_size=32, attack=ONE_STEP)
    assert unchanged(target, before)
    for branch in (0, 1):
        trained = tuned.encoder.bn1.bn_list[branch].running_mean
        assert not torch.allclose(trained, before[f"bn1.bn_list.{branch}.running_mean"])
    assert not torch.allclose(tuned.encoder.conv1.weight, before["conv1.weight"])
    assert tuned.branch == "adv"


def test_the_single_route_loss_leaves_the_clean_norms_as_they_are(target, digits):
    before = snapshot(target)
    train = digits[0].subset(torch.arange(96))
    settings = {"epochs": 1, "batch_size": 32, "attack": ONE_STEP}
    after = finetune(target, train, natural_branch="adv", **settings).encoder.state_dict()
    clean = [name for name in before if ".bn_list.0." in name or name.startswith("bn_list.0.")]
    assert clean
    assert all(torch.equal(after[name], before[name]) for name in clean)
    assert not torch.allclose(after["bn1.bn_list.1.running_mean"], before["bn1.bn_list.1.running_mean"])


def test_an_incomplete_batch_is_left_out_when_asked_for_unless_it_is_the_only_one(digits):
    train, place = digits[0].subset(torch.arange(70)), torch.device("cpu")

    def sizes(batch_size, drop_last):
        generator = torch.Generator().manual_seed(0)
        batches = shuffled_batches(train, batch_size, place, generator, augment=False, drop_last=drop_last)
        return [len(labels) for _, labels in batches]

    assert [sizes(32, False), sizes(32, True), sizes(100, True)] == [[32, 32, 6], [32, 32], [70]]


class _Breaks(TargetNetwork):
    """A target whose forward gives up after a number of calls, shared by all copies."""

    calls = 10**9

    def embed(self, views, branch="clean"):
        type(self).calls -= 1
        if type(self).calls < 0:
            raise KeyboardInterrupt
        return super().embed(views, branch)


def test_fine_tuning_that_was_broken_off_continues_exactly(target, digits, tmp_path):
    train = digits[0].subset(torch.arange(64))
    settings = {"epochs": 3, "batch_size": 32, "attack": ONE_STEP, "learning_rate": 0.05}
    whole = finetune(target, train, **settings)
    target.__class__ = _Breaks
    _Breaks.calls = 20
    with pytest.raises(KeyboardInterrupt):
        finetune(target, train, state_path=tmp_path / "aff.pt", **settings)
    _Breaks.calls = 10**9
    rest = finetune(target, train, state_path=tmp_path / "aff.pt", **settings)
    assert unchanged(rest, snapshot(whole))
    with pytest.raises(CheckpointError, match="other settings"):
        finetune(target, train, state_path=tmp_path / "aff.pt", **{**settings, "learning_rate": 0.1})


@pytest.mark.parametrize("adversarial", [False, True])
def test_a_probe_that_was_broken_off_continues_exactly(target, digits, tmp_path, adversarial):
    train = digits[0].subset(torch.arange(64))
    settings = {"epochs": 3, "batch_size": 32, "attack": ONE_STEP if adversarial else None}
    whole = linear_probe(target, train, **settings).head
    target.__class__ = _Breaks
    _Breaks.calls = 5 if adversarial else 3
    with pytest.raises(KeyboardInterrupt):
        linear_probe(target, train, state_path=tmp_path / "head.pt", **settings)
    assert load_checkpoint(tmp_path / "head.pt")["epoch"] == 1
    _Breaks.calls = 8 if adversarial else 4  # what two of the three epochs need
    rest = linear_probe(target, train, state_path=tmp_path / "head.pt", **settings).head
    assert torch.equal(rest.weight, whole.weight)
    assert bool(whole.weight.any())
    with pytest.raises(CheckpointError, match="other settings"):
        linear_probe(target, train, state_path=tmp_path / "head.pt", **{**settings, "learning_rate": 0.5})


def test_fine_tuning_lowers_the_learning_rate_at_60_and_80_percent(target, digits, tmp_path):
    train = digits[0].subset(torch.arange(32))
    settings = {"epochs": 5, "batch_size": 32, "attack": ONE_STEP, "learning_rate": 0.05}
    target.__class__ = _Breaks
    rates = []
    for done in (2, 3):
        _Breaks.calls = 4 * done + 1  # clean logits, one attack step, two losses an epoch
        with pytest.raises(KeyboardInterrupt):
            finetune(target, train, state_path=tmp_path / f"{done}.pt", **settings)
        state = load_checkpoint(tmp_path / f"{done}.pt")
        rates.append((state["epoch"], state["schedule"]["_last_lr"][0]))
    _Breaks.calls = 10**9
    finetune(target, train, state_path=tmp_path / "5.pt", **settings)
    rates.append((5, load_checkpoint(tmp_path / "5.pt")["schedule"]["_last_lr"][0]))
    assert rates == [(2, pytest.approx(0.05)), (3, pytest.approx(0.005)), (5, pytest.approx(0.0005))]


def test_the_fine_tuning_attack_drives_the_branches_apart_within_its_radius(target, digits):
    classifier = EncoderClassifier(target, 10)
    nn.init.normal_(classifier.head.weight, generator=torch.Generator().manual_seed(0))
    images, labels = digits[0].images[:16].float() / 255, digits[0].labels[:16]

    def divergence(adversarial):
        with torch.no_grad():
            classifier.eval()
            return float(trades_loss(classifier, images, adversarial, labels, 1.0))

    budget = Attack(32 / 255, 8 / 255, 5)
    adversarial = trades_attack(classifier, images, labels, budget)
    assert divergence(adversarial) > divergence(images) + 1e-3
    assert float((adversarial - images).abs().max()) == pytest.approx(32 / 255, abs=1e-6)


def test_the_fine_tuning_attack_is_the_published_one_step_for_step(target, digits):
    """x' starts at x; ten times x' + sign(grad KL(p_clean(x) || p_adv(x'))) * 2/255, into the ball, into the box."""
    classifier = EncoderClassifier(target, 10).double().eval()
    nn.init.normal_(classifier.head.weight, generator=torch.Generator().manual_seed(0))
    images, labels = digits[0].images[:8].double() / 255, digits[0].labels[:8]
    expected = images.clone()
    fixed = classifier(images, "clean").detach().softmax(1)
    for _ in range(10):
        expected.requires_grad_()
        loss = (fixed * (fixed.log() - classifier(expected, "adv").log_softmax(1))).sum()
        (gradient,) = torch.autograd.grad(loss, expected)
        moved = expected.detach() + 2 / 255 * gradient.sign()
        expected = torch.minimum(torch.maximum(moved, images - 8 / 255), images + 8 / 255).clamp(0, 1)
    found = trades_attack(classifier, images, labels, TRAINING_ATTACK)
    assert float(((found - expected).abs() < 1e-6).double().mean()) > 0.999
    assert torch.equal(trades_attack(classifier, images, labels, replace(TRAINING_ATTACK, steps=0)), images)


def test_the_attack_of_alf_starts_in_the_ball_outside_the_image_box(target, digits):
    classifier = EncoderClassifier(target, 10).double().eval()
    nn.init.normal_(classifier.head.weight, generator=torch.Generator().manual_seed(0))
    images, labels = digits[0].images[:8].double() / 255, digits[0].labels[:8]
    seen = []
    hook = target.normalize.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach().clone()))
    found = label_attack(classifier, images, labels, TRAINING_ATTACK, torch.Generator().manual_seed(5))
    hook.remove()
    start = seen[0]
    assert float(start.min()) < -1 / 255  # most pixels of a digit are black
    delta = start - images
    assert 7 / 255 < float(delta.abs().max()) <= 8 / 255
    for _ in range(10):
        delta.requires_grad_()
        loss = F.cross_entropy(classifier(images + delta), labels)
        (gradient,) = torch.autograd.grad(loss, delta)
        delta = (delta.detach() + 2 / 255 * gradient.sign()).clamp(-8 / 255, 8 / 255)
        delta = (images + delta).clamp(0, 1) - images
    assert float(((found - images - delta).abs() < 1e-6).double().mean()) > 0.999


def test_features_of_the_plain_protocol_are_extracted_once(target, digits):
    train = digits[0].subset(torch.arange(64))
    target.__class__ = _Breaks
    _Breaks.calls = 2  # two batches, however many epochs follow
    linear_probe(target, train, epochs=5, batch_size=32, augment=False)
    assert _Breaks.calls == 0
