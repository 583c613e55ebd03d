"""What a step costs, by counted operations."""

import pytest
import torch

from astra_env.models import resnet18
from astra_env.strategy import Attack
from rpat.cost import forward_equivalents, measure_speed, official_attack
from rpat.methods import Step, make_method


def batch(rows=4, size=16):
    source = torch.Generator().manual_seed(0)
    return torch.rand(rows, 3, size, size, generator=source), torch.randint(10, (rows,), generator=source)


def test_one_step_with_robust_perception_costs_at_most_thirty_forward_passes_against_thirty_nine():
    images, labels = batch()
    model = resnet18(width=8, generator=torch.Generator().manual_seed(1))
    assert forward_equivalents(model, images, labels) <= 30
    assert forward_equivalents(model, images, labels, form="official") == pytest.approx(39, abs=1)


def test_both_forms_of_the_attack_find_the_same_images():
    images, labels = batch()
    model = resnet18(width=4, generator=torch.Generator().manual_seed(1)).double()
    budget = Attack(8 / 255, 2 / 255, 3, "linf")
    found = [
        attack(Step(model, images.double(), labels, budget, generator=torch.Generator().manual_seed(3)))
        for attack in (make_method("pgd_at").attack, official_attack)
    ]
    assert ((found[0] - found[1]).abs() < 1e-7).double().mean() > 0.99


def test_speed_is_reported_as_the_ratio_of_medians():
    images, labels = batch(2, 8)
    report = measure_speed(resnet18(width=2, generator=torch.Generator().manual_seed(1)), images, labels, repeats=1)
    (ours,), (official,), (fast,) = (report["seconds"][name] for name in ("ours", "official", "fast"))
    assert report["speedup"] == official / ours
    assert report["fast_speedup"] == official / fast


@pytest.mark.parametrize("form", ["ours", "fast"])
def test_the_step_costs_two_forwards_an_attack_step_and_three_for_each_of_three_inputs(form):
    images, labels = batch()
    model = resnet18(width=8, generator=torch.Generator().manual_seed(1))
    counted = forward_equivalents(model, images, labels, form=form)
    assert counted == pytest.approx(2 * 10 + 3 * 3, rel=0.05)
