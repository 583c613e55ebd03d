"""The attack engine against a plain masked full-batch loop, its bounds, and what it leaves behind."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_attack import masked_attack
from torch import nn

from astra_env.attacks import contrastive_attack, contrastive_pgd, frozen, get_norm, perturb, supervised_pgd
from astra_env.attacks.objectives import Contrastive, CrossEntropy, KLDivergence, Margin
from astra_env.errors import InputError
from astra_env.losses import nt_xent
from astra_env.models import target_resnet18
from astra_env.strategy import AttackStrategy, StrategySpace


def small_target(dtype=torch.float32):
    network = target_resnet18(
        width=4, blocks=(1, 1), feature_dim=8, hidden_dim=16, generator=torch.Generator().manual_seed(3)
    )
    return network.to(dtype)


def random_strategy(count, seed):
    generator = torch.Generator().manual_seed(seed)
    space = StrategySpace()
    columns = [torch.randint(size, (count,), generator=generator) for size in space.sizes]
    return space.decode(torch.stack(columns, dim=1))


def small_single_target(dtype=torch.float32):
    network = target_resnet18(
        width=4, blocks=(1, 1), norm="single", head="mlp2_bn", feature_dim=8, hidden_dim=16,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    return network.to(dtype)


def random_views(count, size, seed, dtype=torch.float32):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("clip_start", [True, False])
def test_forwarding_the_whole_batch_changes_no_number_in_eval_mode(seed, clip_start):
    network, views = small_target(torch.float64), random_views(12, 8, seed, torch.float64)
    strategy = random_strategy(12, seed)
    strategy.steps[[1, 4]] = 0
    start = (random_views(12, 8, seed + 100, torch.float64) * 2 - 1) * 8 / 255
    shrinking, whole = (
        contrastive_attack(network, views, strategy, init=start, clip_start=clip_start, whole_batch=whole)
        for whole in (False, True)
    )
    assert torch.equal(shrinking.adversarial, whole.adversarial)
    torch.testing.assert_close(shrinking.outputs, whole.outputs)
    assert shrinking.zero_gradient_share == whole.zero_gradient_share == 0


def test_whole_batches_reach_the_forward_in_their_own_order():
    views, seen = random_views(6, 4, 0), []
    strategy = AttackStrategy(torch.full((6,), 0.1), torch.tensor([1, 3, 0, 2, 3, 1]), torch.full((6,), 0.05))

    def forward(images):
        seen.append(images.detach().clone())
        return images.flatten(1)

    perturb(
        forward, views, strategy, Contrastive(), norm=get_norm("linf"), delta=torch.zeros_like(views), whole_batch=True
    )
    assert [len(images) for images in seen] == [6, 6, 6]
    assert all(((images - views).abs() <= 0.1 + 1e-6).all() for images in seen)
    with pytest.raises(InputError, match="chunks: expected 1"):
        perturb(forward, views, strategy, Contrastive(), norm=get_norm("linf"), delta=views, whole_batch=True, chunks=2)


def test_an_attack_in_training_mode_sees_the_whole_batch_and_moves_running_statistics():
    network, views = small_single_target(torch.float64).eval(), random_views(8, 8, 0, torch.float64)
    strategy, start = random_strategy(8, 3), (random_views(8, 8, 9, torch.float64) * 2 - 1) * 8 / 255
    twin = small_single_target(torch.float64)
    most = int(strategy.steps.max())
    delta = start
    for iteration in range(most):
        delta = delta.detach().requires_grad_()
        loss = nt_xent(twin.train()(views + delta, branch="adv"))
        (gradient,) = torch.autograd.grad(loss, delta)
        epsilon, alpha = (value.view(-1, 1, 1, 1).double() for value in (strategy.epsilon, strategy.step_size))
        moved = torch.maximum(torch.minimum(delta + alpha * gradient.sign(), epsilon), -epsilon)
        moved = (views + moved).clamp(0, 1) - views
        delta = torch.where((strategy.steps > iteration).view(-1, 1, 1, 1), moved, delta)
    attack = contrastive_attack(network, views, strategy, init=start, clip_start=False, attack_mode="train")
    assert torch.equal(attack.adversarial, (views + delta).clamp(0, 1).detach())
    assert int(network.bn1.bn_list[0].num_batches_tracked) == most
    for name, buffer in network.named_buffers():
        torch.testing.assert_close(buffer, dict(twin.named_buffers())[name])
    assert not any(module.training for module in network.modules())
    with torch.no_grad():
        torch.testing.assert_close(attack.outputs, network(attack.adversarial, branch="adv"))
    eval_mode = contrastive_attack(network, views, strategy, init=start, clip_start=False).adversarial
    assert (eval_mode != attack.adversarial).double().mean() > 0.05


def test_an_unknown_attack_mode_is_named():
    with pytest.raises(InputError, match="attack_mode: expected 'eval' or 'train', got 'test'"):
        contrastive_attack(small_target(), random_views(4, 8, 0), random_strategy(4, 0), attack_mode="test")


@pytest.mark.parametrize("seed", range(4))
def test_shrinking_batch_is_bit_identical_to_the_masked_loop_in_float64(seed):
    network, views = small_target(torch.float64), random_views(12, 8, seed, torch.float64)
    strategy = random_strategy(12, seed)
    start = (random_views(12, 8, seed + 100, torch.float64) * 2 - 1) * 8 / 255
    network.eval()
    expected = masked_attack(lambda x: nt_xent(network(x, branch="adv")), views, strategy, start)
    assert torch.equal(contrastive_pgd(network, views, strategy, init=start), expected)


@settings(max_examples=25, deadline=None)
@given(
    budgets=st.lists(st.tuples(st.floats(0, 0.3), st.integers(0, 4), st.floats(0, 0.4)), min_size=4, max_size=4),
    norm=st.sampled_from(["linf", "l2"]),
    start=st.floats(-2, 2),
)
def test_attack_never_leaves_the_ball_or_the_box(budgets, norm, start):
    views = random_views(4, 4, 0)
    views[0, :, :2] = 0
    views[1, :, :2] = 1
    epsilon, steps, step_size = zip(*budgets, strict=True)
    strategy = AttackStrategy(torch.tensor(epsilon), torch.tensor(steps), torch.tensor(step_size))
    adversarial = contrastive_pgd(small_target(), views, strategy, init=torch.full_like(views, start), norm=norm)
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    delta = (adversarial - views).flatten(1)
    size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    assert (size <= strategy.epsilon + 1e-6).all()


def test_final_features_are_those_of_the_adversarial_views():
    network, views = small_target(), random_views(8, 8, 2)
    result = contrastive_attack(network, views, random_strategy(8, 3), generator=torch.Generator().manual_seed(0))
    with frozen(network), torch.no_grad():
        torch.testing.assert_close(result.outputs, network(result.adversarial, branch="adv"), rtol=1e-4, atol=1e-5)


def test_attack_raises_the_contrastive_loss():
    network, views = small_target(), random_views(8, 8, 2)
    strategy = AttackStrategy.constant(8, 64 / 255, 8, 16 / 255)
    result = contrastive_attack(network, views, strategy, init=torch.zeros_like(views))
    with frozen(network), torch.no_grad():
        assert nt_xent(result.outputs) > nt_xent(network(views, branch="adv")) + 0.01


def fingerprint(model: nn.Module):
    return (
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()],
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
    )


def assert_untouched(before, model):
    modes, flags, gradients, state = fingerprint(model)
    assert (modes, flags) == before[:2]
    for gradient, old in zip(gradients, before[2], strict=True):
        assert gradient is old is None or torch.equal(gradient, old)
    assert all(torch.equal(state[name], before[3][name]) for name in before[3])


@pytest.mark.parametrize("fails", [False, True])
def test_attack_leaves_the_model_exactly_as_it_found_it(fails):
    network, views = small_target().train(), random_views(4, 8, 1)
    network.bn1.eval()
    parameters = list(network.parameters())
    parameters[0].requires_grad_(False)
    parameters[1].grad = torch.ones_like(parameters[1])
    before = fingerprint(network)
    strategy = AttackStrategy.constant(4, steps=2)
    if fails:
        with pytest.raises(InputError):
            contrastive_pgd(network, views, strategy, branch="nonsense")
    else:
        contrastive_pgd(network, views, strategy)
    assert_untouched(before, network)


class CountingLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 3)
        self.rows = 0

    def forward(self, images):
        self.rows += len(images)
        return self.linear(images.flatten(1))


def test_cost_is_each_images_own_steps_plus_one_forward():
    model, images = CountingLinear(), random_views(4, 2, 0)
    strategy = AttackStrategy(torch.full((4,), 0.1), torch.tensor([1, 5, 2, 3]), torch.full((4,), 0.01))
    goal = CrossEntropy(torch.tensor([0, 1, 2, 0]))
    perturb(model, images, strategy, goal, norm=get_norm("linf"), delta=torch.zeros_like(images))
    assert model.rows == 1 + 5 + 2 + 3
    model.rows = 0
    perturb(model, images, strategy, goal, norm=get_norm("linf"), delta=torch.zeros_like(images), final_outputs=True)
    assert model.rows == 1 + 5 + 2 + 3 + 4


def test_attacks_take_no_gradient_of_the_weights(monkeypatch):
    network, views = small_target(), random_views(4, 8, 1)
    seen = []
    network.conv1.register_forward_hook(lambda module, inputs, output: seen.append(module.weight.requires_grad))
    contrastive_pgd(network, views, AttackStrategy.constant(4, steps=2))
    assert seen
    assert not any(seen)


@pytest.mark.parametrize("objective", [CrossEntropy, Margin, KLDivergence])
def test_every_supervised_objective_climbs(objective):
    model, images = CountingLinear(), random_views(6, 2, 0)
    labels = model(images).argmax(1)
    goal = objective(model(images).detach()) if objective is KLDivergence else objective(labels)
    start = torch.full_like(images, 1e-3)
    adversarial = supervised_pgd(
        model, images, labels, epsilon=0.2, step_size=0.05, steps=5, init=start, objective=goal
    )
    assert goal(model(adversarial)) > goal(model(images)) + 0.01


def test_default_start_comes_from_the_generator_alone():
    network, views = small_target(), random_views(4, 8, 1)
    strategy = AttackStrategy.constant(4, steps=1)
    state = torch.get_rng_state()
    first = contrastive_pgd(network, views, strategy, generator=torch.Generator().manual_seed(7))
    again = contrastive_pgd(network, views, strategy, generator=torch.Generator().manual_seed(7))
    other = contrastive_pgd(network, views, strategy, generator=torch.Generator().manual_seed(8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_contrastive_objective_is_joint_and_others_are_not():
    assert Contrastive().joint
    assert not CrossEntropy(torch.zeros(1)).joint


def test_bad_budgets_are_named():
    model, images = CountingLinear(), random_views(2, 2, 0)
    labels = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(InputError, match=r"epsilon: .*8/255"):
        supervised_pgd(model, images, labels, epsilon=8, step_size=0.1, steps=1)
    with pytest.raises(InputError, match="steps"):
        supervised_pgd(model, images, labels, epsilon=0.1, step_size=0.1, steps=-1)
    with pytest.raises(InputError, match="norm"):
        supervised_pgd(model, images, labels, epsilon=0.1, step_size=0.1, steps=1, norm="l1")
    with pytest.raises(InputError, match=r"strategy: expected one entry per image \(2\), got 3"):
        contrastive_pgd(small_target(), random_views(2, 8, 0), AttackStrategy.constant(3))
