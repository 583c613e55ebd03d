"""Networks from files: sizes are read off the weights, and whatever cannot be trusted is refused in one line."""

import pickle

import pytest
import torch
import torchvision
import yaml
from random_weights import randomized
from torch import nn

from astra_env.config.schema import TargetConfig
from astra_env.errors import CheckpointError
from astra_env.evaluation.campaign.loading import load_network, network_for
from astra_env.models import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PreActResNet,
    ResNet,
    WideResNet,
    bottleneck_resnet26,
    preact_resnet18,
    resnet18,
    target_resnet18,
    wide_resnet,
)
from astra_env.models.build import build_target
from astra_env.models.interop import weights_of
from astra_env.storage.checkpoint import save_checkpoint

TINY = {"width": 4, "blocks": (1, 2, 1), "feature_dim": 6, "hidden_dim": 8}
IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def outputs(network):
    with torch.no_grad():
        return network.eval()(IMAGES)


@pytest.mark.parametrize("norm", ["branch", "single", "group"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_a_run_of_ours_is_rebuilt_from_its_checkpoint_alone(tmp_path, norm, stem):
    target = randomized(target_resnet18(norm=norm, stem=stem, **TINY))
    run = tmp_path / "my_run"
    save_checkpoint(run / "checkpoints" / "last.pt", {"target": target.state_dict(), "step": 7, "optimizer": {}})
    loaded = load_network(run)
    assert torch.equal(outputs(loaded.network), outputs(target))
    assert (loaded.name, loaded.kind, loaded.branch, loaded.epoch) == ("my_run", "encoder", "adv", 7)


@pytest.mark.parametrize("head", ["mlp3", "mlp2", "mlp2_bn"])
@pytest.mark.parametrize("normalize", ["none", "imagenet", "cifar10"])
def test_a_runs_head_and_normalisation_are_read_off_its_checkpoint(tmp_path, head, normalize):
    config = TargetConfig(**{**TINY, "blocks": (1, 1, 1, 1)}, head=head, normalize=normalize, norm="single")
    target = randomized(build_target(config, 0, torch.device("cpu")))
    save_checkpoint(tmp_path / "last.pt", {"target": target.state_dict()})
    loaded = load_network(tmp_path / "last.pt")
    assert torch.equal(outputs(loaded.network), outputs(target))
    mean = {"none": 0.0, "imagenet": 0.485, "cifar10": 0.4914}[normalize]
    assert loaded.network.normalize.mean[0].item() == pytest.approx(mean)
    if normalize == "none":
        assert torch.equal(target.normalize(IMAGES), IMAGES)


def test_a_run_of_simclr_is_evaluated_in_the_branch_it_trained(tmp_path):
    run = tmp_path / "run"
    save_checkpoint(run / "checkpoints" / "step_00000010.pt", {"target": target_resnet18(**TINY).state_dict()})
    (run / "config.yaml").write_text(yaml.safe_dump({"learner": {"objective": "simclr"}}))
    loaded = load_network(run / "checkpoints" / "step_00000010.pt")
    assert (loaded.branch, loaded.epoch, loaded.name) == ("clean", 10, "run/step_00000010")


@pytest.mark.parametrize(
    "build",
    [
        lambda: resnet18(7, (IMAGENET_MEAN, IMAGENET_STD), width=4),
        lambda: resnet18(7, width=4, stem="imagenet"),
        lambda: bottleneck_resnet26(7, width=4),
        lambda: preact_resnet18(7, (IMAGENET_MEAN, IMAGENET_STD), width=4),
        lambda: preact_resnet18(7, width=4, variant="benchmark"),
        lambda: wide_resnet(16, 1, 7),
    ],
)
def test_a_supervised_network_is_rebuilt_with_its_head(tmp_path, build):
    network = randomized(build())
    torch.save({"model": network.state_dict(), "ema": build().state_dict()}, tmp_path / "last.pt")
    loaded = load_network(tmp_path / "last.pt")
    assert loaded.kind == "classifier"
    assert torch.equal(outputs(loaded.network), outputs(network))


def test_weights_are_chosen_by_name(tmp_path):
    networks = [randomized(resnet18(7, width=4)), resnet18(7, width=4)]
    torch.save({"model": networks[0].state_dict(), "ema": networks[1].state_dict()}, tmp_path / "last.pt")
    assert torch.equal(outputs(load_network(tmp_path / "last.pt", weights="ema").network), outputs(networks[1]))
    with pytest.raises(CheckpointError, match="no weights called 'best'; choose among ema, model"):
        load_network(tmp_path / "last.pt", weights="best")


@pytest.mark.parametrize("left_out", ["nothing", "fc.", "normalize."])
def test_official_target_checkpoints_load_without_parts_that_some_lack(golden_keys, tmp_path, left_out):
    network = randomized(target_resnet18())
    state = network.state_dict()
    assert {name for name in golden_keys["target"] if not name.endswith("num_batches_tracked")} <= set(state)
    state = {name: tensor for name, tensor in state.items() if not name.startswith(left_out)}
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "model.pt")
    loaded = load_network(tmp_path / "model.pt")
    with torch.no_grad():
        assert torch.equal(loaded.network.embed(IMAGES, "adv"), network.eval().embed(IMAGES, "adv"))


@pytest.mark.parametrize(
    ("official", "built"),
    [
        ("benchmarks_resnet18", ResNet),
        ("benchmarks_pre_resnet18", PreActResNet),
        ("sotas_PreActResNet18", PreActResNet),
        ("sotas_WideResNet34_10", WideResNet),
        ("benchmarks_wrn2810", WideResNet),
    ],
)
def test_official_supervised_networks_are_recognised_by_their_names(golden_keys, tmp_path, official, built):
    state = {name: torch.full(tuple(shape), 0.5) for name, shape in golden_keys[official].items()}
    network = network_for(weights_of({"state_dict": state}), tmp_path)
    assert isinstance(network, built)
    loaded = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert len(loaded) == len(state)
    assert all(bool((tensor == 0.5).all()) for name, tensor in network.state_dict().items() if "num_b" not in name)


@pytest.mark.parametrize("headless", [False, True])
def test_torchvision_names_load(tmp_path, headless):
    theirs = torchvision.models.resnet18(num_classes=7)
    state = {name: tensor for name, tensor in theirs.state_dict().items() if not (headless and name.startswith("fc."))}
    torch.save(state, tmp_path / "tv.pth")
    loaded = load_network(tmp_path / "tv.pth", normalize="imagenet")
    theirs.fc = nn.Identity() if headless else theirs.fc
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        ours = loaded.network.eval().embed(IMAGES) if headless else outputs(loaded.network)
        assert torch.allclose(ours, theirs.eval()((IMAGES - mean) / std), atol=1e-5)
    assert loaded.kind == ("encoder" if headless else "classifier")


class _Evil:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_a_checkpoint_that_pickles_code_is_refused(tmp_path, capsys):
    torch.save({"state_dict": {}, "extra": _Evil()}, tmp_path / "evil.pt", pickle_module=pickle)
    with pytest.raises(CheckpointError, match="could run code"):
        load_network(tmp_path / "evil.pt")
    assert "must never run" not in capsys.readouterr().out


def test_nan_weights_are_refused(tmp_path):
    network = resnet18(7, width=4)
    with torch.no_grad():
        network.conv1.weight[0, 0, 0, 0] = float("nan")
    torch.save(network.state_dict(), tmp_path / "nan.pt")
    with pytest.raises(CheckpointError, match="NaN or infinity in 1 tensors"):
        load_network(tmp_path / "nan.pt")


def test_missing_and_unexpected_keys_are_named(tmp_path):
    state = resnet18(7, width=4).state_dict()
    state["layer3.1.bn2.stray"] = torch.zeros(1)
    del state["layer4.0.bn1.weight"]
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(
        CheckpointError, match=r"1 missing \(layer4\.0\.bn1\.weight\); 1 unexpected \(layer3\.1\.bn2\.s"
    ):
        load_network(tmp_path / "odd.pt")


def test_weights_of_no_known_network_are_named(tmp_path):
    torch.save({"transformer.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"no known network \(first names: transformer\.weight\)"):
        load_network(tmp_path / "other.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere holds no checkpoint; give a run directory"):
        load_network(tmp_path / "nowhere")
