"""Semi-supervised fine-tuning: the published loss and recipe, pseudo-labels, exact continuation."""

import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from astra_env.data import label_fraction, load_dataset, split_labelled, split_validation
from astra_env.errors import CheckpointError, DataError, Diverged
from astra_env.evaluation import EncoderClassifier, robust_accuracy
from astra_env.evaluation.campaign.config import SemiSupervisedConfig
from astra_env.evaluation.measures.batches import paired_batches
from astra_env.evaluation.probes.semi_supervision import (
    pseudo_labels,
    semi_supervised,
    semi_supervised_loss,
    steps_per_epoch,
)
from astra_env.evaluation.probes.training_state import BestWeights, TrainingState
from astra_env.models import TargetNetwork, target_resnet18
from astra_env.strategy import Attack

FEW = SemiSupervisedConfig(
    standard_epochs=3, standard_batch_size=16, epochs=3, batch_size=40, attack_steps=1, learning_rate=0.02
)


@pytest.fixture(scope="module")
def train():
    return load_dataset("digits", "train", image_size=8).subset(torch.arange(240))


def fit(target, train, options=FEW, **changes):
    settings = {"label_fraction": 0.2, "augment": False, **changes}
    return semi_supervised(target, train, options, **settings)


def same(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_loss_is_its_formula_row_by_row(temperature):
    generator = torch.Generator().manual_seed(0)
    natural, adversarial, pseudo = (torch.randn(7, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    labels = torch.tensor([3, 0, 1])
    expected = 0.0
    for row in range(7):
        soft = (pseudo[row] / temperature).softmax(0)
        target = -(soft * (adversarial[row] / temperature).log_softmax(0)).sum() * temperature**2 * 0.8
        p, q = natural[row].softmax(0), adversarial[row].softmax(0)
        expected += 6 * float((p * (p / q).log()).sum())
        if row < 3:
            expected += 0.7 * float(-q[labels[row]].log()) + 0.3 * float(target)
        else:
            expected += float(target)
    found = semi_supervised_loss(
        natural, adversarial, labels, pseudo, beta=6.0, alpha=0.3, temperature=temperature, distillation=0.8
    )
    assert float(found) == pytest.approx(expected / 7, rel=1e-12)


def test_both_arguments_of_the_divergence_have_gradients():
    natural, adversarial = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    semi_supervised_loss(natural, adversarial, torch.tensor([1]), torch.randn(3, 4).double()).backward()
    assert natural.grad is not None
    assert float(natural.grad.abs().min()) > 0


def test_a_step_shows_both_kinds_in_proportion_and_an_epoch_every_image_once(train):
    labelled, others = split_labelled(train, 0.1, 0)
    generator = torch.Generator().manual_seed(1)
    batches = list(paired_batches(labelled, others, 6, torch.device("cpu"), generator, augment=False))
    for part, position in ((labelled, 1), (others, 2)):
        sizes = [len(batch[position]) for batch in batches]
        assert max(sizes) - min(sizes) <= 1
        assert sorted(torch.cat([batch[position] for batch in batches]).tolist()) == list(range(len(part)))
    images, mine, theirs = batches[0]
    assert torch.equal(images[: len(mine)], labelled.images[mine].float() / 255)
    assert torch.equal(images[len(mine) :], others.images[theirs].float() / 255)


def test_the_labelled_share_and_the_rest_make_the_whole(train):
    labelled, others = split_labelled(train, 0.2, 3)
    assert torch.equal(labelled.images, label_fraction(train, 0.2, 3).images)
    assert len(labelled) + len(others) == len(train)
    assert torch.equal(torch.cat([labelled.labels, others.labels]).bincount(), train.labels.bincount())


def start_of(target, branch):
    """A copy of the encoder with a head at zero, and its forward through one branch."""
    network = target_resnet18(width=4, blocks=(1, 1), feature_dim=6, hidden_dim=8)
    network.load_state_dict(target.state_dict())
    head = torch.nn.Linear(network.embed_dim, 10)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    model = torch.nn.ModuleDict({"encoder": network, "head": head})
    return model, lambda images: head(network.embed(images, branch))


def one_step_attack(model, forward, images, labels, generator):
    model.eval()
    delta = (torch.rand(images.shape, generator=generator) * 2 - 1) * (8 / 255)
    delta.requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(forward(images + delta), labels), delta)
    delta = (delta.detach() + 2 / 255 * gradient.sign()).clamp(-8 / 255, 8 / 255)
    model.train()
    return (images + delta).clamp(0, 1)


def test_the_protocol_is_its_three_stages(target, train):
    """Three epochs of both trainings, written out from the published scripts; the last epochs are used."""
    with torch.no_grad():
        target.bn1.bn_list[0].bias.add_(0.5)
        target.bn1.bn_list[1].bias.sub_(0.5)
    options = replace(FEW, choose="last", learning_rate=0.1)
    found = fit(target, train, options, seed=7).classifier
    labelled, others = split_labelled(train, 0.2, 7)

    model, teacher = start_of(target, "clean")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=2e-4)
    generator = torch.Generator().manual_seed(7)
    for epoch in range(3):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.1**epoch
        for rows in torch.randperm(len(labelled), generator=generator).split(16):
            model.train()
            optimizer.zero_grad()
            F.cross_entropy(teacher(labelled.images[rows] / 255), labelled.labels[rows]).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        known, unknown = (teacher(part.images / 255) for part in (labelled, others))

    model, student = start_of(target, "adv")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(7)
    for epoch in range(3):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.1**epoch
        orders = [torch.randperm(len(part), generator=generator).tensor_split(6) for part in (labelled, others)]
        for mine, theirs in zip(*orders, strict=True):
            images = torch.cat([labelled.images[mine], others.images[theirs]]) / 255
            hard = torch.cat([labelled.labels[mine], unknown[theirs].argmax(1)])
            adversarial = one_step_attack(model, student, images, hard, generator)
            optimizer.zero_grad()
            logits, attacked = student(images), student(adversarial)
            pseudo = torch.cat([known[mine], unknown[theirs]])
            semi_supervised_loss(logits, attacked, labelled.labels[mine], pseudo).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        expected, given = (forward(train.images[:50] / 255) for forward in (student, found))
    assert float((given - expected).abs().max()) < 0.01 * float(expected.std())
    assert float(expected.std()) > 1e-3


def test_pseudo_labels_are_the_eval_mode_logits_of_images_as_they_are(target, train):
    teacher = EncoderClassifier(target, 10, "clean").train()
    torch.nn.init.normal_(teacher.head.weight, generator=torch.Generator().manual_seed(0))
    found = pseudo_labels(teacher, train, batch_size=100)
    assert teacher.training
    with torch.no_grad():
        assert torch.allclose(found, teacher.eval()(train.images.float() / 255), atol=1e-5)


def test_the_encoder_is_not_changed_and_only_its_adv_branch_is_fine_tuned(target, train):
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    tuned = fit(target, train).classifier
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())
    after = tuned.encoder.state_dict()
    assert torch.equal(after["bn1.bn_list.0.running_mean"], before["bn1.bn_list.0.running_mean"])
    assert not torch.allclose(after["bn1.bn_list.1.running_mean"], before["bn1.bn_list.1.running_mean"])
    assert tuned.branch == "adv"
    assert not tuned.training


def test_labels_outside_the_labelled_share_only_count_the_right_pseudo_labels(target, train, monkeypatch):
    options = replace(FEW, choose="last")
    whole = fit(target, train, options)

    def hidden(dataset, fraction, seed):
        labelled, others = split_labelled(dataset, fraction, seed)
        return labelled, replace(others, labels=(others.labels + 1) % 10)

    monkeypatch.setattr(sys.modules["astra_env.evaluation.probes.semi_supervision"], "split_labelled", hidden)
    found = fit(target, train, options)
    assert same(found.classifier, whole.classifier)
    assert found.description["pseudo_labels"]["correct"] != whole.description["pseudo_labels"]["correct"]


def test_held_out_images_choose_the_epochs(target, train):
    found = fit(target, train)
    described = found.description
    rest, held_out = split_validation(train, 24, 0)
    labelled, others = split_labelled(rest, 0.2, 0)
    assert (described["labelled"], described["pseudo_labelled"]) == (len(labelled), len(others))
    assert described["held_out"] == 24
    accuracy = robust_accuracy(found.classifier, held_out, Attack(8 / 255, 2 / 255, 20))
    assert accuracy.value == described["fine_tuning"]["held_out_accuracy"]
    assert 1 <= described["fine_tuning"]["epoch"] <= 3
    last = fit(target, train, replace(FEW, choose="last")).description
    assert (last["held_out"], last["fine_tuning"]) == (0, {"epoch": 3})


def test_the_best_epoch_is_the_first_of_equals():
    module, best = torch.nn.Linear(1, 1), BestWeights()
    for epoch, score in ((1, 0.2), (2, 0.5), (3, 0.5), (4, 0.4)):
        torch.nn.init.constant_(module.weight, epoch)
        best.offer(module, epoch, score)
    assert (best.epoch, best.score, float(best.weights["weight"])) == (2, 0.5, 2.0)


def test_published_numbers_are_the_defaults(target, train, monkeypatch):
    seen = []
    original = torch.optim.lr_scheduler.MultiStepLR

    def watched(optimizer, milestones):
        group = optimizer.param_groups[0]
        seen.append((group["lr"], group["momentum"], group["weight_decay"], milestones))
        return original(optimizer, milestones)

    monkeypatch.setattr(torch.optim.lr_scheduler, "MultiStepLR", watched)
    monkeypatch.setattr(TrainingState, "restore", lambda self: 10**6)  # nothing left to train
    fit(target, train, SemiSupervisedConfig(choose="last"))
    assert seen == [(0.1, 0.9, 2e-4, [39, 59]), (0.1, 0.9, 5e-4, [4, 9])]
    defaults = SemiSupervisedConfig()
    assert (defaults.standard_epochs, defaults.standard_batch_size, defaults.epochs) == (100, 128, 15)
    assert (defaults.beta, defaults.alpha, defaults.temperature, defaults.distillation) == (6.0, 0.5, 1.0, 1.0)
    assert (defaults.attack_steps, defaults.choose) == (10, "held_out")


@pytest.mark.parametrize(("images", "share", "steps"), [(45000, 0.1, 180), (45000, 0.01, 225)])
def test_published_batches_are_the_default(images, share, steps):
    labelled = round(share * images)
    assert steps_per_epoch(labelled, images - labelled, None, share) == steps


class _Breaks(TargetNetwork):
    """A target whose forward gives up after a number of calls, shared by all copies."""

    calls = 10**9

    def embed(self, views, branch="clean"):
        type(self).calls -= 1
        if type(self).calls < 0:
            raise KeyboardInterrupt
        return super().embed(views, branch)


def test_training_that_was_broken_off_anywhere_continues_exactly(target, train, tmp_path):
    whole = fit(target, train)
    target.__class__ = _Breaks
    _Breaks.calls = 10**9
    fit(target, train)
    needed = 10**9 - _Breaks.calls
    for number in range(1, 8):
        path = tmp_path / f"{number}.pt"
        _Breaks.calls = number * needed // 8
        with pytest.raises(KeyboardInterrupt):
            fit(target, train, state_path=path)
        _Breaks.calls = needed - 1  # fewer than a training from the start needs, but for the earliest break
        if number == 1:
            _Breaks.calls = 10**9
        found = fit(target, train, state_path=path)
        assert same(found.classifier, whole.classifier)
        assert found.description == whole.description
    with pytest.raises(CheckpointError, match="other settings"):
        fit(target, train, replace(FEW, alpha=0.4), state_path=path)


def test_a_loss_that_is_not_finite_ends_it_in_one_line(target, train):
    with pytest.raises(
        Diverged, match=r"standard training: the loss is (nan|inf) in epoch \d; lower the learning rate"
    ):
        fit(target, train, replace(FEW, standard_learning_rate=1e30))


def test_a_share_that_leaves_a_class_without_labels_is_an_error(target, train):
    with pytest.raises(DataError, match="leaves none; use at least"):
        fit(target, train, label_fraction=0.001)
