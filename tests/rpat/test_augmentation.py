"""What a training batch looks like."""

import pytest
import torch

from rpat.augmentation import Augmentation, BatchedAutoAugment
from rpat.config import AugmentConfig


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count=6, size=12):
    return torch.randint(256, (count, 3, size, size), generator=seeded(1), dtype=torch.uint8)


def make(views=1, epochs=200, seed=0, **settings):
    config = AugmentConfig(padding=2, **({"padding_mode": "zero", "autoaugment": "never"} | settings))
    return Augmentation(config, epochs=epochs, views=views, num_classes=6, generator=seeded(seed))


def test_two_views_are_different_crops_in_two_halves_with_the_labels_of_both():
    images, labels = make(views=2)(pictures(), torch.arange(6), 0)
    assert images.shape == (12, 3, 12, 12)
    assert torch.equal(labels, torch.arange(6).repeat(2))
    assert not torch.equal(images[:6], images[6:])
    assert images.min() >= 0
    assert images.max() <= 1


def test_padding_mode_decides_what_comes_in_at_the_border():
    white = torch.full((64, 3, 8, 8), 255, dtype=torch.uint8)
    zero, _ = make(flip=False)(white, torch.zeros(64, dtype=torch.long), 0)
    reflect, _ = make(flip=False, padding_mode="reflect")(white, torch.zeros(64, dtype=torch.long), 0)
    assert zero.min() == 0
    assert reflect.min() == 1


def test_autoaugment_starts_at_half_of_the_run_and_brings_cutout_with_it():
    augment = make(autoaugment="second_half")
    assert [augment.uses_autoaugment(epoch) for epoch in (0, 99, 100, 199)] == [False, False, True, True]
    white = torch.full((16, 3, 12, 12), 200, dtype=torch.uint8)
    labels = torch.zeros(16, dtype=torch.long)
    plain = make(flip=False, padding_mode="reflect", autoaugment="second_half")
    assert plain(white, labels, 0)[0].min() > 0.7
    late, _ = plain(white, labels, 150)
    assert (late.amax(1).flatten(1).min(1).values == 0).all()


def test_cutmix_mixes_the_labels_by_area():
    images, labels = make(cutmix=True, seed=2)(pictures(), torch.arange(6), 0)
    assert images.shape == (6, 3, 12, 12)
    assert labels.shape == (6, 6)
    assert labels.sum(1) == pytest.approx(torch.ones(6))


def test_batched_autoaugment_is_torchvisions_policy_image_by_image():
    from torchvision.transforms import AutoAugment, AutoAugmentPolicy

    images, batched = pictures(40, 16), BatchedAutoAugment()
    changed = batched(images, seeded(4))
    groups = batched._draw(40, seeded(4))
    reference = AutoAugment(AutoAugmentPolicy.CIFAR10)
    assert sorted(row for rows in groups.values() for row in rows) == list(range(40))
    for decision, rows in groups.items():
        reference.get_params = lambda count, drawn=decision: drawn
        for row in rows:
            assert torch.equal(changed[row], reference(images[row]))


def test_batched_autoaugment_draws_every_operation_with_its_probability():
    batched = BatchedAutoAugment()
    groups = batched._draw(20000, seeded(1))
    policies = batched._policy.policies
    drawn = torch.zeros(len(policies))
    applied = torch.zeros(len(policies), 2)
    for (policy, (first, second), _), rows in groups.items():
        drawn[policy] += len(rows)
        applied[policy] += torch.tensor([first == 0, second == 0]) * len(rows)
    expected = torch.tensor([[probability for _, probability, _ in policy] for policy in policies])
    assert (applied / drawn[:, None] - expected).abs().max() < 0.07
    assert (drawn / 20000 - 1 / len(policies)).abs().max() < 0.01


def test_augmentation_uses_its_generator_and_no_other():
    torch_state = torch.get_rng_state()
    first, second, other = (
        make(views=2, autoaugment="always", cutmix=True, seed=seed)(pictures(), torch.arange(6), 0)[0]
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), torch_state)
