"""One training step of each released code, written out plainly in float64, against ours."""

import copy

import pytest
import torch
import torch.nn.functional as F

from astra_env.models import resnet18
from astra_env.strategy import Attack
from rpat.methods import RobustPerception, Step, make_method

EPSILON, ALPHA, STEPS = 1 / 32, 1 / 128, 4
"""Radius and step length are exact in float32, in which a strategy keeps them."""


def network(seed=0):
    return resnet18(4, width=2, generator=torch.Generator().manual_seed(seed)).double().train()


def batch(rows=8):
    """Images of which a third of the pixels are black or white, where clipping shows, and labels."""
    source = torch.Generator().manual_seed(5)
    images = (2 * torch.rand(rows, 3, 8, 8, generator=source, dtype=torch.float64) - 0.5).clamp(0, 1)
    return images, torch.randint(4, (rows,), generator=source)


def make_step(model, *, norm="linf", perception=None, average=None, budget=None):
    images, labels = batch()
    return Step(
        model,
        images,
        labels,
        budget if budget is not None else Attack(EPSILON, ALPHA, STEPS, norm),
        generator=torch.Generator().manual_seed(7),
        perception=perception,
        average=average,
    )


def own_step(method, step):
    """Take our step: attack, losses, SGD, what follows the update; returns the adversarial images."""
    optimizer = torch.optim.SGD(step.model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    step.adversarial = method.attack(step)
    optimizer.zero_grad()
    sum(method.terms(step).values()).backward()
    optimizer.step()
    method.after_update(step)
    return step.adversarial


def plain_sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)


def largest_difference(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs)


def rebat_start(images, norm):
    source = torch.Generator().manual_seed(7)
    if norm == "linf":
        return (2 * torch.rand(images.shape, generator=source).double() - 1) * EPSILON
    normal = torch.randn(images.shape, generator=source).double()
    share = torch.rand(len(images), 1, 1, 1, generator=source).double()
    return normal * (share / normal.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * EPSILON)


def rebat_attack(model, images, labels, norm):
    """The attack of ReBAT's release: cross-entropy's mean, all of the batch in every step, a last forward pass."""
    low, high = -images, 1 - images
    delta = torch.maximum(torch.minimum(rebat_start(images, norm), high), low).requires_grad_()
    for _ in range(STEPS):
        F.cross_entropy(model(images + delta), labels).backward()
        with torch.no_grad():
            if norm == "linf":
                moved = (delta + ALPHA * delta.grad.sign()).clamp(-EPSILON, EPSILON)
            else:
                moved = delta + ALPHA * delta.grad / delta.grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
                moved = moved * (EPSILON / moved.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(max=1)
            delta = torch.maximum(torch.minimum(moved, high), low)
        delta.requires_grad_()
    with torch.no_grad():
        model(images + delta)
    return delta.detach()


def official_rebat_step(model, average, images, labels, *, norm, mode, perception):
    """ReBAT's training step, or with robust perception RPAT++'s, as released but for the mode of the attack."""
    optimizer = plain_sgd(model)
    model.train(mode == "train")
    delta = rebat_attack(model, images, labels, norm)
    model.train()
    adversarial = (images + delta).clamp(0, 1)
    logits = model(adversarial)
    loss = F.cross_entropy(logits, labels)
    if average is not None:
        with torch.no_grad():
            if perception:
                target = average((images + 0.5 * delta).clamp(0, 1)) - 0.5 * average(images)
            else:
                target = average(adversarial)
        log_prediction = F.log_softmax((0.5 if perception else 1.0) * logits, dim=1)
        loss = loss + F.kl_div(log_prediction, F.softmax(target, dim=1), reduction="batchmean")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if mode == "train":
        with torch.no_grad():
            model(images)
    return adversarial


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("averaged", "perception"), [(False, False), (True, False), (True, True)])
def test_a_step_of_rebat_and_rpat_plus_plus_is_the_released_one(mode, norm, averaged, perception):
    ours, official = network(), network()
    average = network(1).eval() if averaged else None
    step = make_step(ours, norm=norm, average=average, perception=RobustPerception() if perception else None)
    own = own_step(make_method("rebat", {"attack_mode": mode}), step)
    theirs = official_rebat_step(official, average, *batch(), norm=norm, mode=mode, perception=perception)
    assert (own - theirs).abs().max() < 1e-12
    assert largest_difference(ours, official) < 1e-12
    assert ours.training


def test_the_two_attack_modes_give_different_attacks_weights_and_statistics():
    models = {mode: network() for mode in ("train", "eval")}
    adversarial = {
        mode: own_step(make_method("rebat", {"attack_mode": mode}), make_step(model)) for mode, model in models.items()
    }
    assert ((adversarial["train"] - adversarial["eval"]).abs() > 1e-6).double().mean() > 0.05
    assert largest_difference(models["train"], models["eval"]) > 1e-3


def pgd(model, images, start, loss):
    """l-inf PGD in eval mode whose start is forwarded as it is."""
    position = images + start
    for _ in range(STEPS):
        position = position.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(model(position)), position)
        moved = position.detach() + ALPHA * gradient.sign()
        position = torch.minimum(torch.maximum(moved, images - EPSILON), images + EPSILON).clamp(0, 1)
    return position.detach()


def near_start(images):
    return 0.001 * torch.randn(images.shape, generator=torch.Generator().manual_seed(7)).double()


def official_trades_step(model, images, labels):
    """TRADES with robust perception: x is forwarded twice, and the second time gives the target of the divergence."""
    optimizer = plain_sgd(model)
    model.eval()
    with torch.no_grad():
        clean = model(images).softmax(1)
    adversarial = pgd(model, images, near_start(images), lambda z: F.kl_div(z.log_softmax(1), clean, reduction="sum"))
    model.train()
    logits, attacked = model(images), model(adversarial)
    loss = F.cross_entropy(logits, labels)
    loss = loss + 6 * F.kl_div(attacked.log_softmax(1), model(images).softmax(1), reduction="batchmean")
    loss = loss + (model((images + adversarial) / 2) - (logits + attacked) / 2).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return adversarial


def official_mart_step(model, images, labels):
    """MART with robust perception."""
    optimizer = plain_sgd(model)
    model.eval()
    adversarial = pgd(model, images, near_start(images), lambda z: F.cross_entropy(z, labels))
    model.train()
    logits, attacked = model(images), model(adversarial)
    p, q = logits.softmax(1), attacked.softmax(1)
    best = q.argsort(1)[:, -2:]
    wrong = torch.where(best[:, 1] == labels, best[:, 0], best[:, 1])
    loss = F.cross_entropy(attacked, labels) + F.nll_loss((1.0001 - q + 1e-12).log(), wrong)
    divergence = (p * (p.log() - (q + 1e-12).log())).sum(1)
    loss = loss + 6 * (divergence * (1.0000001 - p[torch.arange(len(p)), labels])).mean()
    loss = loss + (model((images + adversarial) / 2) - (logits + attacked) / 2).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return adversarial


@pytest.mark.parametrize(("name", "official"), [("trades", official_trades_step), ("mart", official_mart_step)])
def test_a_step_of_trades_and_mart_with_robust_perception_is_the_released_one(name, official):
    ours, theirs = network(), network()
    own = own_step(make_method(name), make_step(ours, perception=RobustPerception()))
    other = official(theirs, *batch())
    assert (own - other).abs().max() < 1e-12
    assert largest_difference(ours, theirs) < 1e-12


@pytest.mark.parametrize(("name", "outside"), [("trades", True), ("mart", True), ("pgd_at", False), ("rebat", False)])
def test_the_first_forward_pass_of_an_attack_sees_the_start_as_the_release_makes_it(name, outside):
    model, seen = network(), []
    step = make_step(model)
    hook = model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    result = make_method(name).attack(step)
    hook.remove()
    assert result.min() >= 0
    assert result.max() <= 1
    started = seen[1 if name == "trades" else 0]  # TRADES looks at the clean images first
    assert bool(((started < 0) | (started > 1)).any()) == outside


@pytest.mark.parametrize(
    ("name", "arguments", "perception", "passes"),
    [
        ("pgd_at", {}, False, 1),
        ("pgd_at", {}, True, 3),
        ("trades", {}, False, 3),
        ("trades", {}, True, 4),
        ("mart", {}, True, 3),
        ("consistency", {}, True, 3),
        ("rebat", {"attack_mode": "eval"}, True, 1),
        ("rebat", {"attack_mode": "train"}, True, STEPS + 1 + 1 + 1),
    ],
)
def test_running_statistics_move_as_often_as_in_the_release(name, arguments, perception, passes):
    model = network()
    own_step(make_method(name, arguments), make_step(model, perception=RobustPerception() if perception else None))
    assert {int(value) for key, value in model.state_dict().items() if "num_batches" in key} == {passes}


def test_the_l2_start_of_rebat_has_uniform_length_and_the_other_methods_fill_the_ball():
    from rpat.methods.rebat import radial_start

    budget = Attack(0.5, 0.1, 2, "l2")
    rows = 2000
    step = Step(network(), torch.full((rows, 3, 8, 8), 0.5, dtype=torch.float64), torch.zeros(rows).long(), budget)
    step.generator = torch.Generator().manual_seed(0)
    start = radial_start(step)
    shares = start.flatten(1).norm(dim=1).sort().values / 0.5
    grid = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
    assert (shares - grid).abs().max() < 1.63 / rows**0.5  # Kolmogorov-Smirnov at 1 %; the ball's own law is 0.98 off
    assert start.flatten(1).mean(0).norm() < 0.05
    linf = copy.copy(step)
    linf.budget = Attack(0.5, 0.1, 2, "linf")
    assert radial_start(linf).abs().max() == pytest.approx(0.5, rel=1e-3)
