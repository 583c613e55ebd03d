"""Reading foreign checkpoints: wrappers and prefixes come off, every misfit is named, nothing is half-loaded."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

from astra_env.errors import CheckpointError, KeysDiffer
from astra_env.models import IMAGENET_MEAN, IMAGENET_STD, load_official, preact_resnet18, resnet18, target_resnet18

TINY = {"width": 4, "blocks": (1, 1), "feature_dim": 6, "hidden_dim": 8}


def tiny(seed: int, **changes: object) -> nn.Module:
    return target_resnet18(**{**TINY, **changes}, generator=torch.Generator().manual_seed(seed))


def same(model: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: prefixed("module.", state),
        lambda state: prefixed("_orig_mod.module.", state),
        lambda state: {"epoch": 3, "state_dict": prefixed("module.", state), "optim": {"lr": 1}},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"net": state, "acc": torch.tensor(0.5)},
        lambda state: {"target": state, "config": {"seed": 1}},
    ],
)
def test_wrappers_and_prefixes_come_off(wrap):
    source = tiny(1).state_dict()
    model = tiny(2)
    assert load_official(model, wrap(source)) is model
    assert same(model, source)


def test_momentum_encoder_of_dynacl_is_the_one_that_is_read():
    query, momentum = tiny(1).state_dict(), tiny(2).state_dict()
    checkpoint = {"state_dict": prefixed("encoder_q.", query) | prefixed("encoder_k.", momentum)}
    assert same(load_official(tiny(3), checkpoint), momentum)


def test_missing_unexpected_and_reshaped_keys_are_counted_and_named():
    model = tiny(2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    source = tiny(1).state_dict()
    for name in ("fc.fc3.weight", "conv1.weight"):
        del source[name]
    source["head.weight"] = torch.zeros(1)
    source["fc.fc1.weight"] = torch.zeros(9, 8)
    with pytest.raises(CheckpointError) as caught:
        load_official(model, source)
    message = str(caught.value)
    assert "TargetNetwork: 2 missing (conv1.weight, fc.fc3.weight); 1 unexpected (head.weight); " in message
    assert "1 of another shape (fc.fc1.weight: expected (8, 8), got (9, 8))" in message
    assert "\n" not in message
    assert same(model, before)


def test_long_lists_of_keys_are_cut_but_counted():
    source = {name: tensor for name, tensor in tiny(1, norm="single").state_dict().items() if "layer2" not in name}
    listed = r"layer2\.0\.conv1\.weight, layer2\.0\.bn1\.bn_list\.0\.weight, layer2\.0\.bn1\.bn_list\.0\.bias, \.\.\."
    with pytest.raises(KeysDiffer, match=rf"15 missing \({listed}\);") as caught:
        load_official(tiny(2, norm="single"), source)
    needed = {name for name in tiny(1, norm="single").state_dict() if not name.endswith("num_batches_tracked")}
    assert set(caught.value.missing) == needed - set(source)
    assert (caught.value.unexpected, caught.value.wrong_shape) == ([], [])


def test_two_branch_checkpoint_does_not_slip_into_a_single_branch_network():
    with pytest.raises(CheckpointError, match=r"unexpected \(bn1\.bn_list\.1\.weight"):
        load_official(tiny(1, norm="single"), tiny(2).state_dict())


def test_unindexed_single_norm_of_acl_is_understood():
    source = tiny(1, norm="single").state_dict()
    official = {name.replace("bn_list.0.", "bn_list."): tensor for name, tensor in source.items()}
    assert same(load_official(tiny(2, norm="single"), official), source)


def test_projection_of_another_size_may_be_left_out_on_request_and_then_stays_whole():
    source, model = tiny(1, hidden_dim=5).state_dict(), tiny(2)
    head = {name: tensor.clone() for name, tensor in model.state_dict().items() if name.startswith("fc.")}
    with pytest.raises(CheckpointError, match="of another shape"):
        load_official(model, source, strict=False)
    load_official(model, source, allow_missing=("fc.",))
    assert same(model, source | head)


def test_allowed_part_is_loaded_when_the_checkpoint_has_it():
    source = tiny(1).state_dict()
    assert same(load_official(tiny(2), source, allow_missing=("fc.",)), source)


def test_not_strict_loads_what_agrees_and_refuses_a_checkpoint_with_nothing_in_common():
    source, model = tiny(1).state_dict(), tiny(2)
    own = model.conv1.weight.clone()
    load_official(model, {"bn1.bn_list.0.bias": source["bn1.bn_list.0.bias"] + 3, "else": own}, strict=False)
    assert bool((model.bn1.bn_list[0].bias == 3).all())
    assert torch.equal(model.conv1.weight, own)
    with pytest.raises(CheckpointError, match="no common name"):
        load_official(model, {"else": own}, strict=False)


def test_normalisation_may_be_absent_from_the_checkpoint_but_not_from_the_network():
    model = preact_resnet18(3, (IMAGENET_MEAN, IMAGENET_STD), width=4)
    load_official(model, preact_resnet18(3, width=4).state_dict())
    assert model.normalize.mean.tolist() == pytest.approx(IMAGENET_MEAN)
    with pytest.raises(CheckpointError, match=r"2 unexpected \(normalize\.mean, normalize\.std\)"):
        load_official(preact_resnet18(3, width=4), model.state_dict())


def test_torchvision_names_load_into_the_imagenet_resnet_with_equal_logits():
    source = torchvision.models.resnet18(num_classes=5).eval()
    model = load_official(resnet18(5, stem="imagenet"), source.state_dict()).eval()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(images), source(images))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_and_named(bad):
    source, model = tiny(1).state_dict(), tiny(2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    source["fc.fc1.bias"] = torch.full((8,), bad)
    with pytest.raises(CheckpointError, match=r"NaN or infinity in 1 tensors \(fc\.fc1\.bias\)"):
        load_official(model, source)
    assert same(model, before)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "got an empty mapping"),
        ([1], "got list"),
        ({"epoch": 3}, "expected a tensor under 'epoch', got int"),
        ({"state_dict": {}}, "got an empty mapping"),
    ],
)
def test_what_is_not_a_state_dict_is_refused_with_what_it_is(given, said):
    with pytest.raises(CheckpointError, match=said):
        load_official(tiny(1), given)
