"""Accuracy under attack: equal to an independent loop, ordered as it must be, and honest about its uncertainty."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from astra_env.errors import DataError, InputError
from astra_env.evaluation import Accuracy, clean_accuracy, noise_curve, path_curve, radius_curve, robust_accuracy
from astra_env.evaluation.measures.batches import take
from astra_env.evaluation.measures.parts import Parts
from astra_env.evaluation.measures.robustness import Restarts
from astra_env.strategy import Attack

EPSILON = 40 / 255


def within(steps, epsilon=EPSILON):
    return Attack.crossing(epsilon, steps)


def independent_pgd_count(model, images, labels, epsilon, step_size, steps, noise, loss):
    """Plain PGD as a paper's pseudo code has it."""
    x_adv = (images + noise).clamp(0, 1)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        gradient = torch.autograd.grad(loss(model(x_adv), labels), x_adv)[0]
        moved = x_adv.detach() + step_size * gradient.sign()
        x_adv = torch.min(torch.max(moved, images - epsilon), images + epsilon).clamp(0, 1)
    return int((model(x_adv).argmax(1) == labels).sum())


def margin(logits, labels):
    right = logits.gather(1, labels[:, None])[:, 0]
    others = logits.masked_fill(F.one_hot(labels, logits.shape[1]).bool(), -math.inf)
    return (others.max(1).values - right).sum()


@pytest.mark.parametrize(
    ("objective", "loss"),
    [("cross_entropy", lambda z, y: F.cross_entropy(z, y, reduction="sum")), ("margin", margin)],
)
def test_pgd_20_accuracy_equals_an_independent_loop(small_net, digits, objective, loss):
    test = digits[1]
    noise = (2 * torch.rand(test.images.shape, generator=torch.Generator().manual_seed(5)) - 1) * EPSILON
    expected = independent_pgd_count(
        small_net, test.images.float() / 255, test.labels, EPSILON, EPSILON / 8, 20, noise, loss
    )
    measured = robust_accuracy(small_net, test, within(20), seed=5, objective=objective, batch_size=len(test))
    assert measured == Accuracy(expected, len(test))
    assert 0.1 < measured.value < clean_accuracy(small_net, test).value - 0.1


def test_the_batch_size_makes_no_difference(small_net, digits):
    counts = {robust_accuracy(small_net, digits[1], within(5), batch_size=size).correct for size in (32, 100)}
    assert len(counts) == 1


def test_an_image_counts_only_when_it_withstands_every_restart(small_net, digits):
    test = digits[1]
    images = test.images.float() / 255
    withstood = torch.ones(len(test), dtype=torch.bool)
    for seed in range(7, 10):
        attacked = Restarts(small_net, within(1), seed=seed)(images, test.labels)
        with torch.no_grad():
            withstood &= small_net(attacked).argmax(1) == test.labels
    options = {"attack": within(1), "batch_size": len(test), "seed": 7}
    assert robust_accuracy(small_net, test, restarts=3, **options).correct == int(withstood.sum())
    assert int(withstood.sum()) < robust_accuracy(small_net, test, **options).correct


def test_a_restart_attacks_only_what_is_not_yet_fooled(small_net, digits):
    test, rows = digits[1], []
    hook = small_net.register_forward_hook(
        lambda module, inputs, output: rows.append(len(inputs[0])) if inputs[0].requires_grad else None
    )
    options = {"attack": within(1), "batch_size": len(test)}
    left = robust_accuracy(small_net, test, **options).correct
    rows.clear()
    robust_accuracy(small_net, test, restarts=2, **options)
    hook.remove()
    assert rows == [len(test), left]


def test_bf16_finds_other_images_and_float32_judges_them(small_net, digits):
    test, dtypes = digits[1], []
    options = {"attack": within(5), "batch_size": len(test)}
    exact = robust_accuracy(small_net, test, **options)
    hook = small_net.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    fast = robust_accuracy(small_net, test, precision="bf16", **options)
    hook.remove()
    assert dtypes == [torch.bfloat16] * 5 + [torch.float32]
    assert fast.value == pytest.approx(exact.value, abs=0.05)


def test_radius_zero_is_the_clean_accuracy(small_net, digits):
    assert robust_accuracy(small_net, digits[1], within(20, epsilon=0)) == clean_accuracy(small_net, digits[1])


def test_the_model_is_left_as_it_was(digits):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    robust_accuracy(model, digits[1], within(2), max_images=20)
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_measuring_leaves_the_global_random_state_alone(small_net, digits):
    before = torch.random.get_rng_state()
    robust_accuracy(small_net, digits[1], within(1))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_max_images_draws_from_the_whole_set_without_repeating(digits):
    part = take(digits[1], 50)
    assert len(part) == 50
    rows = [int((digits[1].images == image).flatten(1).all(1).nonzero()[0, 0]) for image in part.images]
    assert rows == sorted(set(rows))
    assert rows[-1] > 300
    assert torch.equal(part.labels, digits[1].labels[rows])
    assert not torch.equal(take(digits[1], 50, seed=1).images, part.images)
    assert take(digits[1], 10**6) is digits[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "cw"}, "objective: expected one of cross_entropy, margin, got 'cw'"),
        ({"restarts": 0}, "restarts: expected at least 1"),
        ({"precision": "fp16"}, "precision: expected 'fp32' or 'bf16', got 'fp16'"),
        ({"max_images": 0}, "max_images: expected at least 1"),
        ({"batch_size": 0}, "batch_size: expected at least 1"),
        ({"attack": Attack(1.0, 0.1, 1, "l1")}, "norm: expected one of l2, linf"),
    ],
)
def test_bad_numbers_are_named(small_net, digits, change, message):
    with pytest.raises(InputError, match=message):
        robust_accuracy(small_net, digits[1], **{"attack": within(20), **change})


def test_nan_weights_are_an_error_not_an_accuracy(small_net, digits):
    class Broken(nn.Module):
        def forward(self, images):
            return small_net(images) * math.nan

    with pytest.raises(InputError, match="NaN or infinity"):
        clean_accuracy(Broken(), digits[1])


def test_a_head_with_another_class_count_is_an_error(digits):
    head = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 100))
    with pytest.raises(InputError, match=r"expected logits \(N, 10\)"):
        clean_accuracy(head, digits[1])


def test_unlabelled_images_are_an_error(small_net, digits):
    from dataclasses import replace

    unlabelled = replace(digits[1], labels=torch.full_like(digits[1].labels, -1))
    with pytest.raises(DataError, match="have no label"):
        clean_accuracy(small_net, unlabelled)


def test_wilson_interval_matches_the_published_formula():
    low, high = Accuracy(81, 263).interval
    assert (low, high) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    assert Accuracy(0, 10).interval[0] == 0
    assert Accuracy(10, 10).interval[1] == 1


def test_the_radius_curve_falls_from_the_clean_accuracy(small_net, digits):
    curve = radius_curve(small_net, digits[1], radii=(0, 20 / 255, 60 / 255), steps=5)
    values = [accuracy.correct for accuracy in curve.accuracies]
    assert values[0] == clean_accuracy(small_net, digits[1]).correct
    assert values[0] > values[1] > values[2]


@pytest.mark.parametrize("curve", [radius_curve, noise_curve])
@pytest.mark.parametrize(("norm", "largest"), [("linf", 16 / 255), ("l2", 256 / 255)])
def test_curves_go_from_nothing_to_twice_the_papers_radius(small_net, digits, curve, norm, largest):
    part = digits[1].subset(torch.arange(2))
    found = curve(small_net, part, norm=norm, **({"steps": 1} if curve is radius_curve else {}))
    assert found.values[0] == 0
    assert found.values[-1] == pytest.approx(largest)
    assert len(found.accuracies) == 9


def test_a_curve_that_was_broken_off_measures_only_the_other_radii(small_net, digits, tmp_path):
    part, radii = digits[1].subset(torch.arange(8)), (0, 0.1, 0.2)
    computed = []

    def remember(name, compute):
        def counted():
            computed.append(name)
            return compute()

        return Parts(tmp_path / "parts.json", "owner")(name, counted)

    whole = radius_curve(small_net, part, radii=radii, steps=2)
    radius_curve(small_net, part, radii=radii[:2], steps=2, remember=remember)
    assert radius_curve(small_net, part, radii=radii, steps=2, remember=remember) == whole
    assert len(computed) == len(set(computed)) == 3


def test_random_noise_hurts_less_than_the_attack_of_its_size(small_net, digits):
    noise = noise_curve(small_net, digits[1], radii=(0, EPSILON)).accuracies
    attack = radius_curve(small_net, digits[1], radii=(EPSILON,), steps=10).accuracies[0]
    assert noise[0] == clean_accuracy(small_net, digits[1])
    assert noise[1].value > attack.value + 0.1


def test_noise_has_exactly_the_radius(digits):
    seen = []

    class Recorder(nn.Module):
        def forward(self, images):
            seen.append(images)
            return torch.zeros(len(images), 10)

    noise_curve(Recorder(), digits[1], radii=(0.1,), batch_size=len(digits[1]))
    shift = seen[0] - digits[1].images.float() / 255
    assert float(shift.abs().max()) == pytest.approx(0.1, abs=1e-6)
    inside = (seen[0] > 0) & (seen[0] < 1)
    assert torch.allclose(shift[inside].abs(), torch.tensor(0.1), atol=1e-6)


def test_the_path_leads_from_the_image_to_the_adversarial_image(small_net, digits):
    curve = path_curve(small_net, digits[1], within(10), fractions=(0.0, 0.5, 1.0))
    ends = (
        clean_accuracy(small_net, digits[1]),
        robust_accuracy(small_net, digits[1], within(10)),
    )
    assert (curve.accuracies[0], curve.accuracies[2]) == ends
    assert ends[0].correct > curve.accuracies[1].correct > ends[1].correct
