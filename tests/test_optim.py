"""LARS and the warm-up cosine against the official numbers and small closed forms."""

import pytest
import torch

from astra_env.optim import LARS, warmup_cosine


def test_lars_first_step_is_the_scaled_decayed_gradient():
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    weight.grad = torch.tensor([0.6, 0.8])
    LARS([weight], lr=2.0, weight_decay=0.1, trust_coefficient=0.01).step()
    rate = 2.0 * 0.01 * 5.0 / (1.0 + 0.1 * 5.0)
    expected = torch.tensor([3.0 - rate * (0.6 + 0.3), 4.0 - rate * (0.8 + 0.4)])
    torch.testing.assert_close(weight.detach(), expected)


def test_lars_moves_a_tensor_of_zeros_at_the_learning_rate_itself():
    bias = torch.nn.Parameter(torch.zeros(3))
    bias.grad = torch.full((3,), 0.25)
    LARS([bias], lr=2.0).step()
    assert bias.detach().tolist() == [-0.5, -0.5, -0.5]


def test_lars_decays_a_tensor_without_gradient_at_the_learning_rate_itself():
    weight = torch.nn.Parameter(torch.full((3,), 2.0, dtype=torch.float64))
    weight.grad = torch.zeros(3, dtype=torch.float64)
    LARS([weight], lr=0.5, weight_decay=0.1).step()
    torch.testing.assert_close(weight.detach(), torch.full((3,), 2.0 - 0.5 * 0.1 * 2.0, dtype=torch.float64))


@pytest.mark.parametrize("case", ["zero_weight", "zero_grad_first", "ordinary"])
def test_official_lars_where_norms_vanish(golden_lars_zero_norms, case):
    golden = {name.removeprefix(f"{case}_"): value for name, value in golden_lars_zero_norms.items()}
    weight = torch.nn.Parameter(golden["w0"].clone())
    optimizer = LARS([weight], lr=0.3, momentum=0.9, weight_decay=1e-6, trust_coefficient=1e-3)
    for gradient, expected in zip(golden["grads"], golden["w"], strict=True):
        weight.grad = gradient.clone()
        optimizer.step()
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=1e-15)


def test_lars_survives_zero_weights_with_zero_gradient():
    bias = torch.nn.Parameter(torch.zeros(3))
    bias.grad = torch.zeros(3)
    LARS([bias], lr=1.0).step()
    assert bias.isfinite().all()


def test_lars_resumes_from_its_state_dict_bit_for_bit():
    def run(optimizer, weight, gradients):
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()

    gradients = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    straight = torch.nn.Parameter(torch.ones(5))
    run(LARS([straight], lr=0.5), straight, gradients)
    first = torch.nn.Parameter(torch.ones(5))
    before = LARS([first], lr=0.5)
    run(before, first, gradients[:2])
    second = torch.nn.Parameter(first.detach().clone())
    after = LARS([second], lr=0.5)
    after.load_state_dict(before.state_dict())
    run(after, second, gradients[2:])
    assert torch.equal(straight, second)


def test_official_lars_trajectory(golden_astra):
    weight = torch.nn.Parameter(golden_astra["lars_w0"].clone())
    optimizer = LARS([weight], lr=0.3, momentum=0.9, weight_decay=1e-6, trust_coefficient=1e-3)
    for step in range(3):
        weight.grad = golden_astra["lars_grads"][step].clone()
        optimizer.step()
        torch.testing.assert_close(weight.detach(), golden_astra[f"lars_w{step + 1}"], rtol=1e-10, atol=1e-12)


def test_official_schedules(golden_astra):
    for name, total, warmup, final, steps in (
        ("lr_factor_target", 1000, 200, 1e-6 / 5, "lr_factor_steps"),
        ("lr_factor_strategy", 100, 20, 1e-6 / 0.1, "lr_factor_strategy_steps"),
    ):
        ours = [warmup_cosine(int(step), total, warmup, final) for step in golden_astra[steps]]
        assert ours == pytest.approx(golden_astra[name].tolist(), rel=1e-6, abs=1e-12)


def test_schedule_without_warmup_starts_full_and_ends_at_the_final_factor():
    assert warmup_cosine(0, 10, 0, 0.1) == pytest.approx(1.0)
    assert warmup_cosine(5, 10, 0, 0.0) == pytest.approx(0.5)
    assert warmup_cosine(10, 10, 0, 0.1) == pytest.approx(0.1)
    assert warmup_cosine(99, 10, 0, 0.1) == pytest.approx(0.1)
