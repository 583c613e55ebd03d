"""The target network: branches that do not touch each other, any input size, explicit initial weights."""

import copy

import pytest
import torch
from torch import nn

from astra_env.errors import InputError
from astra_env.models import IMAGENET_MEAN, IMAGENET_STD, target_resnet18
from astra_env.models.layers import BranchNorm

TINY = {"width": 8, "feature_dim": 16, "hidden_dim": 32}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def views(count: int = 6, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=seeded(9))


def buffers_of(target: nn.Module, branch: int) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in target.named_buffers() if f"bn_list.{branch}." in name}


def test_branch_norm_uses_the_statistics_of_the_named_branch():
    norm = BranchNorm(1).eval()
    norm.bn_list[0].running_mean.fill_(1.0)
    norm.bn_list[1].running_mean.fill_(2.0)
    norm.bn_list[1].running_var.fill_(4.0)
    x = torch.full((1, 1, 1, 1), 5.0)
    assert norm(x, 0).item() == pytest.approx((5 - 1) / (1 + 1e-5) ** 0.5, rel=1e-6)
    assert norm(x, 1).item() == pytest.approx((5 - 2) / (4 + 1e-5) ** 0.5, rel=1e-6)


@pytest.mark.parametrize(("branch", "index"), [("clean", 0), ("adv", 1)])
def test_training_forward_updates_every_statistic_of_its_branch_and_no_other(branch, index):
    target = target_resnet18(**TINY, generator=seeded()).train()
    used, other = buffers_of(target, index), buffers_of(target, 1 - index)
    target(views(), branch)
    assert len(used) == 3 * (1 + 2 * 8 + 3 + 3)
    assert not any(torch.equal(used[name], buffer) for name, buffer in buffers_of(target, index).items())
    assert all(torch.equal(other[name], buffer) for name, buffer in buffers_of(target, 1 - index).items())


def test_gradient_reaches_only_the_affine_parameters_of_the_branch_used():
    target = target_resnet18(**TINY, generator=seeded())
    target(views(), "adv").square().sum().backward()
    without = {name for name, parameter in target.named_parameters() if parameter.grad is None}
    assert without == {name for name, _ in target.named_parameters() if ".bn_list.0." in name}


def test_evaluation_forward_changes_no_buffer_and_treats_each_view_alone():
    target = target_resnet18(**TINY, generator=seeded()).double().eval()
    before = {name: buffer.clone() for name, buffer in target.named_buffers()}
    images = views().double()
    together = target(images, "adv")
    torch.testing.assert_close(torch.cat([target(image[None], "adv") for image in images]), together)
    assert all(torch.equal(before[name], buffer) for name, buffer in target.named_buffers())


def test_forward_is_embed_then_project():
    target = target_resnet18(**TINY, generator=seeded()).eval()
    embedding = target.embed(views(), "adv")
    assert embedding.shape == (6, target.embed_dim) == (6, 64)
    assert torch.equal(target.project(embedding, "adv"), target(views(), "adv"))
    assert target(views(), "adv").shape == (6, target.feature_dim) == (6, 16)


def test_single_norm_makes_the_branches_one():
    target = target_resnet18(**TINY, norm="single", generator=seeded()).train()
    target(views(), "adv")
    target.eval()
    assert torch.equal(target(views(), "clean"), target(views(), "adv"))
    assert not any(".bn_list.1." in name for name in target.state_dict())


def test_group_norm_has_no_batch_statistics_and_features_that_vary():
    target = target_resnet18(**TINY, norm="group", generator=seeded())
    assert {name for name, _ in target.named_buffers()} == {"normalize.mean", "normalize.std"}
    features = target.train()(views(), "clean")
    assert torch.equal(features, target.eval()(views(), "adv"))
    assert features.std(dim=0).min() > 1e-4


@pytest.mark.parametrize(("stem", "size"), [("cifar", 16), ("cifar", 33), ("cifar", 64), ("imagenet", 96)])
def test_any_input_size_works(stem, size):
    target = target_resnet18(**TINY, stem=stem, generator=seeded())
    assert target(views(2, size), "clean").shape == (2, 16)


def test_imagenet_stem_shrinks_the_maps_fourfold_and_the_cifar_stem_not_at_all():
    sizes = {}
    for stem in ("cifar", "imagenet"):
        target = target_resnet18(**TINY, stem=stem, generator=seeded())
        target.layer1[0].conv1.register_forward_hook(lambda *call, stem=stem: sizes.update({stem: call[2].shape[-1]}))
        target.embed(views(2, 64))
    assert sizes == {"cifar": 64, "imagenet": 16}


def test_depth_and_width_scale_the_network():
    target = target_resnet18(width=4, blocks=(1, 3), feature_dim=5, hidden_dim=7, generator=seeded())
    assert [len(target.layer1), len(target.layer2), target.embed_dim] == [1, 3, 8]
    assert target.fc.fc1.weight.shape == (7, 8)
    assert target(views()).shape == (6, 5)


def test_normalisation_is_inside_and_can_be_left_out():
    inside = target_resnet18(**TINY, generator=seeded()).eval()
    outside = target_resnet18(**TINY, normalize=None, generator=seeded()).eval()
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(inside(views()), outside((views() - mean) / std))
    assert not any(name.startswith("normalize") for name in outside.state_dict())


def test_generator_fixes_all_weights_and_the_global_one_is_not_touched():
    before = torch.get_rng_state()
    first, again, other = (target_resnet18(**TINY, generator=seeded(seed)).state_dict() for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    assert not torch.equal(first["fc.fc1.bias"], other["fc.fc1.bias"])


def test_without_a_generator_the_global_one_decides():
    state = torch.get_rng_state()
    first = target_resnet18(**TINY).conv1.weight
    torch.set_rng_state(state)
    assert torch.equal(first, target_resnet18(**TINY).conv1.weight)
    assert not torch.equal(first, target_resnet18(**TINY).conv1.weight)


def test_initial_weights_have_the_official_distributions():
    target = target_resnet18(width=32, generator=seeded())
    weight = target.layer3[1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (9 * weight.shape[0])) ** 0.5, rel=0.02)
    linear = target.fc.fc1.weight
    assert linear.abs().max().item() == pytest.approx(256**-0.5, rel=0.01)
    assert linear.std().item() == pytest.approx((3 * 256) ** -0.5, rel=0.02)
    assert bool((target.bn1.bn_list[1].weight == 1).all())
    assert bool((target.bn1.bn_list[1].bias == 0).all())


def test_channels_last_gives_the_same_features():
    target = target_resnet18(**TINY, generator=seeded()).eval()
    expected = target(views(), "adv")
    last = copy.deepcopy(target).to(memory_format=torch.channels_last)
    torch.testing.assert_close(
        last(views().to(memory_format=torch.channels_last), "adv"), expected, rtol=1e-3, atol=1e-4
    )


def test_bf16_autocast_stays_close_and_finite():
    target = target_resnet18(**TINY, generator=seeded()).train()
    expected = copy.deepcopy(target)(views(), "adv")
    with torch.autocast("cpu", torch.bfloat16):
        features = target(views(), "adv")
    assert bool(torch.isfinite(features).all())
    assert torch.nn.functional.cosine_similarity(features.float(), expected).min() > 0.98


def test_compiles_without_graph_breaks_for_both_branches():
    target = target_resnet18(width=4, blocks=(1, 1), feature_dim=4, hidden_dim=4, generator=seeded()).eval()
    compiled = torch.compile(target, fullgraph=True, backend="eager")
    for branch in ("clean", "adv"):
        torch.testing.assert_close(compiled(views(), branch), target(views(), branch))


@pytest.mark.parametrize("call", ["forward", "embed", "project"])
def test_unknown_branch_is_refused_with_the_allowed_ones(call):
    target = target_resnet18(**TINY, generator=seeded())
    with pytest.raises(InputError, match=r"branch: expected 'clean' or 'adv', got 'pgd'.*official"):
        getattr(target, call)(torch.zeros(2, 64) if call == "project" else views(), "pgd")


@pytest.mark.parametrize(
    ("field", "value"),
    [("width", 0), ("blocks", ()), ("feature_dim", -1), ("hidden_dim", 0), ("stem", "vit"), ("norm", "layer")],
)
def test_impossible_sizes_are_refused_by_name(field, value):
    with pytest.raises(InputError, match=f"^{field}: expected"):
        target_resnet18(**{**TINY, field: value})


def test_normalisation_with_a_zero_deviation_is_refused():
    with pytest.raises(InputError, match=r"^normalize: expected"):
        target_resnet18(**TINY, normalize=((0.5, 0.5, 0.5), (0.2, 0.0, 0.2)))
