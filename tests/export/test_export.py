"""Exports: torchvision, timm, ONNX Runtime and our own reader compute what the exported network computes."""

import json

import pytest
import torch
import torchvision
from random_weights import randomized
from torch import nn

from astra_env.errors import CheckpointError, InputError
from astra_env.evaluation.campaign.loading import load_network
from astra_env.export import (
    fold_branch,
    load_export,
    load_robustbench,
    plain_classifier,
    pull,
    push,
    read_safetensors,
    write_export,
    write_onnx,
)
from astra_env.models import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    bottleneck_resnet26,
    preact_resnet18,
    resnet18,
    target_resnet18,
    wide_resnet,
)

pytest.importorskip("safetensors")


def small_target(**changes):
    sizes = {"width": 4, "blocks": (1, 2), "feature_dim": 6, "hidden_dim": 8, **changes}
    return randomized(target_resnet18(**sizes)).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def head_for(size, classes=5):
    head = nn.Linear(size, classes)
    return randomized(head)


@pytest.mark.parametrize("branch", ["clean", "adv"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@torch.no_grad()
def test_a_folded_branch_is_that_branch_bit_for_bit(images, branch, stem):
    target = small_target(stem=stem)
    plain = fold_branch(target, branch)
    assert torch.equal(plain(images), target.embed(images, branch))
    other = "clean" if branch == "adv" else "adv"
    assert not torch.allclose(plain(images), target.embed(images, other), rtol=1e-2)


@torch.no_grad()
def test_torchvision_itself_loads_the_export_and_computes_the_same(images, tmp_path):
    target = randomized(target_resnet18(feature_dim=6, hidden_dim=8)).eval()
    head = head_for(512)
    classifier = plain_classifier(fold_branch(target, "adv"), head)
    tensors, metadata = read_safetensors(write_export(classifier, tmp_path, branch="adv"))

    network = torchvision.models.resnet18(num_classes=5)
    network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    network.maxpool = nn.Identity()
    network.load_state_dict(tensors, strict=True)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (metadata.mean, metadata.std))
    logits = network.eval()((images - mean) / std)
    assert torch.allclose(logits, head(target.embed(images, "adv")), rtol=1e-5, atol=1e-5)
    assert float(logits.std()) > 1e-2
    assert (metadata.mean, metadata.stem) == (pytest.approx(IMAGENET_MEAN), "cifar")
    assert "conv1 = Conv2d(3, 64, 3, 1, 1" in metadata.comment


@torch.no_grad()
def test_timm_loads_the_exported_encoder_and_computes_the_same(images, tmp_path):
    timm = pytest.importorskip("timm")
    target = randomized(target_resnet18(feature_dim=6, hidden_dim=8)).eval()
    tensors, metadata = read_safetensors(write_export(fold_branch(target, "clean"), tmp_path))
    network = timm.create_model("resnet18", num_classes=0)
    network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    network.maxpool = nn.Identity()
    network.load_state_dict(tensors, strict=True)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (metadata.mean, metadata.std))
    features = network.eval()((images - mean) / std)
    assert torch.allclose(features, target.embed(images, "clean"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "build",
    [
        lambda: resnet18(7, (IMAGENET_MEAN, IMAGENET_STD), width=4),
        lambda: resnet18(7, None, width=4, stem="imagenet"),
        lambda: bottleneck_resnet26(7, width=4),
        lambda: preact_resnet18(7, (IMAGENET_MEAN, IMAGENET_STD), width=4),
        lambda: preact_resnet18(7, width=4, variant="benchmark"),
        lambda: wide_resnet(10, 1, 7, (IMAGENET_MEAN, IMAGENET_STD)),
    ],
)
@torch.no_grad()
def test_classifiers_come_back_from_an_export_bit_for_bit(images, tmp_path, build):
    network = randomized(build()).eval()
    file = write_export(network, tmp_path)
    assert torch.equal(load_export(tmp_path)(images), network(images))
    assert torch.equal(load_robustbench(file)(images), network(images))
    loaded = load_network(file)
    assert loaded.kind == "classifier"
    assert torch.equal(loaded.network(images), network(images))


@torch.no_grad()
def test_an_exported_encoder_comes_back_and_needs_a_head_for_robustbench(images, tmp_path):
    target = small_target()
    file = write_export(fold_branch(target, "adv"), tmp_path, branch="adv", source="abc")
    assert torch.equal(load_export(file)(images), target.embed(images, "adv"))
    loaded = load_network(tmp_path)
    assert loaded.kind == "encoder"
    assert torch.equal(loaded.network.embed(images), target.embed(images, "adv"))
    sidecar = json.loads((tmp_path / "model.json").read_text())
    assert (sidecar["branch"], sidecar["source"], sidecar["num_classes"]) == ("adv", "abc", 0)
    with pytest.raises(CheckpointError, match="without a head"):
        load_robustbench(tmp_path)


def test_onnx_runtime_computes_the_same_for_any_batch_size(images, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = plain_classifier(fold_branch(small_target(), "adv"), head_for(8))
    file = write_onnx(network, tmp_path / "model.onnx", image_size=16)
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for count in (1, 3):
        (logits,) = session.run(None, {"images": images[:count].numpy()})
        with torch.no_grad():
            expected = network(images[:count])
        assert torch.allclose(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-5)


def test_push_and_pull_through_a_local_folder(images, tmp_path):
    network = fold_branch(small_target(), "adv")
    write_export(network, tmp_path / "export")
    (tmp_path / "export" / "secret.txt").write_text("stays here")
    push(tmp_path / "export", str(tmp_path / "shelf"))
    file = pull(str(tmp_path / "shelf"), tmp_path / "copy")
    with torch.no_grad():
        assert torch.equal(load_export(file)(images), network(images))
    assert not (tmp_path / "shelf" / "secret.txt").exists()


def test_pushing_something_else_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        push(tmp_path, str(tmp_path / "shelf"))


def test_an_unreachable_hub_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"hub: cannot pull 'owner/name' \(.+\)") as caught:
        pull("hf:owner/name", tmp_path)
    assert "\n" not in str(caught.value)


def test_group_norms_have_no_torchvision_form():
    with pytest.raises(InputError, match="export it as onnx"):
        fold_branch(small_target(norm="group"), "adv")


def test_a_head_of_another_encoder_is_refused():
    with pytest.raises(InputError, match="expected 8 inputs, got 9"):
        plain_classifier(fold_branch(small_target()), head_for(9))


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b"", lambda data: b"junk" * 50])
def test_a_damaged_export_is_named(tmp_path, damage):
    file = write_export(fold_branch(small_target()), tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_export(file)
