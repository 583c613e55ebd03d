"""The attack in training mode: who moves, what the network sees, and what is left of it."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from astra_env.attacks import supervised_attack, supervised_pgd
from astra_env.errors import ConfigError, InputError
from astra_env.models import resnet18
from astra_env.strategy import Attack, AttackStrategy
from rpat.methods import Step, make_method

ROWS = 6


class Linear(torch.nn.Module):
    """A network without BatchNorm, the same in both modes."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3 * 8 * 8, 4).double()

    def forward(self, images):
        return self.layer(images.flatten(1))


def network():
    return resnet18(4, width=2, generator=torch.Generator().manual_seed(0)).double().train()


def batch():
    source = torch.Generator().manual_seed(1)
    images = torch.rand(ROWS, 3, 8, 8, generator=source, dtype=torch.float64)
    start = (2 * torch.rand(images.shape, generator=source, dtype=torch.float64) - 1) * 0.03
    return images, torch.randint(4, (ROWS,), generator=source), start


def budgets(steps):
    return AttackStrategy(
        torch.full((ROWS,), 0.03, dtype=torch.float64),
        torch.tensor(steps),
        torch.full((ROWS,), 0.01, dtype=torch.float64),
    )


def training_mode_attack(model, images, labels, strategy, start, **options):
    options = {"attack_mode": "train", "final_outputs": True, **options}
    return supervised_attack(model, images, labels, strategy, init=start, **options)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_without_batch_norm_it_is_the_attack_in_eval_mode(norm):
    torch.manual_seed(0)
    model, (images, labels, start) = Linear(), batch()
    start = start / 20 if norm == "l2" else start
    ours = training_mode_attack(model, images, labels, budgets([3] * ROWS), start, norm=norm).adversarial
    settings = {"epsilon": 0.03, "step_size": 0.01, "steps": 3, "norm": norm, "init": start}
    assert torch.allclose(ours, supervised_pgd(model, images, labels, **settings), atol=1e-6)


def test_every_step_forwards_the_whole_batch_and_each_image_stops_after_its_own_steps():
    model, (images, labels, start) = network(), batch()
    seen = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    result = training_mode_attack(model, images, labels, budgets([0, 1, 2, 3, 3, 1]), start)
    assert [len(images) for images in seen] == [ROWS] * 4
    moves = itertools.pairwise(seen)
    moved = torch.stack([(after - before).abs().flatten(1).amax(1) > 0 for before, after in moves])
    assert moved.sum(0).tolist() == [0, 1, 2, 3, 3, 1]
    assert torch.equal(result.adversarial, seen[-1])
    assert int(model.bn1.num_batches_tracked) == 4


def test_modes_and_flags_of_the_model_are_restored():
    model, (images, labels, start) = network(), batch()
    model.bn1.eval()
    model.linear.weight.requires_grad_(False)
    before = [(module.training) for module in model.modules()]
    training_mode_attack(model, images, labels, budgets([2] * ROWS), start)
    assert [module.training for module in model.modules()] == before
    assert not model.linear.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_early_stop_moves_only_images_that_the_network_has_right_and_ends_when_it_has_none():
    model, (images, _, start) = network(), batch()
    with torch.no_grad():
        right = model((images + start).clamp(0, 1)).argmax(1)
    labels = torch.where(torch.arange(ROWS) < 3, right, (right + 1) % 4)
    model = network()
    seen = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    training_mode_attack(model, images, labels, budgets([1] * ROWS), start, early_stop=True)
    assert ((seen[1] - seen[0]).abs().flatten(1).amax(1) > 0).tolist() == [True] * 3 + [False] * 3
    model, wrong = network(), (right + 1) % 4
    training_mode_attack(model, images, wrong, budgets([5] * ROWS), start, early_stop=True)
    assert int(model.bn1.num_batches_tracked) == 2  # the one that finds nothing right, and the last


def test_outputs_are_those_of_training_mode_at_the_final_position():
    model, (images, labels, start) = network(), batch()
    result = training_mode_attack(model, images, labels, budgets([2] * ROWS), start)
    assert torch.equal(result.outputs, network()(result.adversarial).detach())
    assert result.zero_gradient_share == 0
    assert F.cross_entropy(result.outputs, labels) > F.cross_entropy(network()((images + start).clamp(0, 1)), labels)


def test_a_folded_copy_cannot_stand_for_a_network_in_training_mode():
    model, (images, labels, _) = network(), batch()
    step = Step(model, images, labels, Attack(0.03, 0.01, 2, "linf"), attacked=model)
    with pytest.raises(InputError, match="attacked: an attack in training mode needs the network itself"):
        make_method("rebat", {"attack_mode": "train"}).attack(step)
    with pytest.raises(ConfigError, match=r"method_args\.attack_mode: expected one of eval, train, got 'both'"):
        make_method("rebat", {"attack_mode": "both"})
