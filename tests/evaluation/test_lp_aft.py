"""LP-AFT: pseudo-labels from the clean branch, a probed head to start from, an encoder that loads like any other."""

import copy
import sys
from dataclasses import replace

import pytest
import torch

from astra_env.commands import lp_aft as script
from astra_env.commands import train as train_astra
from astra_env.config.command_line import run_main
from astra_env.config.reading import load_config
from astra_env.data import load_dataset
from astra_env.data.clustering import kmeans_labels
from astra_env.errors import ConfigError, InputError
from astra_env.evaluation.campaign.loading import load_network
from astra_env.evaluation.probes import lp_aft as module
from astra_env.evaluation.probes.lp_aft import LPAFTConfig, lp_aft, pseudo_labelled
from astra_env.evaluation.probes.single_route import single_route
from astra_env.models import target_resnet18

SMALL = LPAFTConfig(clusters=4, probe_epochs=1, epochs=1, attack_steps=1, batch_size=32, augment=False)


@pytest.fixture
def encoder():
    return target_resnet18(
        width=4, blocks=(1, 1), feature_dim=8, hidden_dim=8, generator=torch.Generator().manual_seed(0)
    ).eval()


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", "train", image_size=8).subset(torch.arange(64))


def run(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
    return run_main(module.main)


def test_kmeans_finds_separate_heaps_and_repeats_itself():
    heaps = torch.arange(4.0).repeat_interleave(10)[:, None] * 10
    features = heaps + torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
    labels = kmeans_labels(features, 4, seed=3)
    assert [len(set(labels[10 * k : 10 * k + 10].tolist())) for k in range(4)] == [1] * 4
    assert len(set(labels.tolist())) == 4
    assert torch.equal(labels, kmeans_labels(features, 4, seed=3))
    with pytest.raises(InputError, match="expected 1 to 40"):
        kmeans_labels(features, 41)
    with pytest.raises(InputError, match="finite"):
        kmeans_labels(features * float("nan"), 2)


def test_pseudo_labels_are_clusters_of_the_clean_branch_and_real_labels_are_not_seen(encoder, digits):
    labelled = pseudo_labelled(encoder, digits, SMALL, torch.device("cpu"))
    with torch.no_grad():
        features = encoder.embed(digits.images.float() / 255, "clean")
    assert torch.equal(labelled.labels, kmeans_labels(features, 4, 0))
    assert len(labelled.classes) == 4


def test_the_fine_tuning_starts_from_the_probed_head_with_the_published_numbers(encoder, digits, monkeypatch):
    seen = {}
    original = module.finetune

    def watched(target, train, **options):
        seen.update(options)
        return original(target, train, **options)

    monkeypatch.setattr(module, "finetune", watched)
    before = copy.deepcopy(encoder.state_dict())
    tuned = lp_aft(encoder, digits, SMALL)
    assert seen["head"].weight.abs().sum() > 0
    assert (seen["learning_rate"], seen["weight_decay"], seen["beta"]) == (0.1, 1e-4, 6.0)
    assert (seen["natural_branch"], seen["drop_last"]) == ("adv", True)
    assert [round(point * LPAFTConfig().epochs) for point in seen["decay_points"]] == [10, 20]
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())
    assert not torch.equal(tuned.conv1.weight, encoder.conv1.weight)


def test_both_published_forms_train_the_same_route_and_differ_in_what_they_keep(encoder, digits):
    images = digits.images[:4].float() / 255
    single = lp_aft(encoder, digits, SMALL)
    both = lp_aft(encoder, digits, replace(SMALL, branches="both"))
    with torch.no_grad():
        assert torch.equal(single.embed(images, "adv"), both.embed(images, "adv"))
        assert torch.equal(single.embed(images, "adv"), single.embed(images, "clean"))
        assert not torch.allclose(both.embed(images, "adv"), both.embed(images, "clean"))
    assert not any("bn_list.1." in name for name in single.state_dict())
    for name, tensor in encoder.state_dict().items():
        if "bn_list.0." in name:
            assert torch.equal(both.state_dict()[name], tensor)


@pytest.mark.parametrize("branch", ["clean", "adv"])
def test_a_single_route_answers_as_its_branch_did(encoder, digits, branch):
    with torch.no_grad():
        for norm in (encoder.bn1.bn_list[1], encoder.fc.bn1.bn_list[1]):
            norm.bias.add_(1)
    images = digits.images[:4].float() / 255
    alone = single_route(encoder, branch)
    with torch.no_grad():
        assert torch.equal(alone(images), encoder(images, branch))
        assert not torch.allclose(encoder(images, "clean"), encoder(images, "adv"))
    assert (alone.norm, encoder.norm) == ("single", "branch")
    with pytest.raises(InputError, match="branch: expected one of 'clean', 'adv', got 'pgd'"):
        single_route(encoder, "pgd")


def test_the_script_writes_an_encoder_that_loads_as_one_and_refuses_what_it_cannot_use(tmp_path, monkeypatch, capsys):
    tiny = ["--config", "tiny", "--quiet", "--learner.total_steps", "2", "--probe.enabled", "false"]
    assert run(monkeypatch, train_astra, *tiny, "--run_dir", tmp_path / "run") == 0
    few = ["--probe_epochs", "1", "--epochs", "1", "--attack_steps", "1", "--clusters", "3", "--quiet"]
    assert run(monkeypatch, script, tmp_path / "run", "--out", tmp_path / "tuned", *few, "--device", "cpu") == 0
    first, second = (load_network(tmp_path / name) for name in ("run", "tuned"))
    assert (second.kind, second.branch) == ("encoder", "adv")
    assert (first.network.norm, second.network.norm) == ("branch", "single")
    assert second.run["data"]["name"] == "digits"
    assert first.digest != second.digest
    assert not (tmp_path / "tuned" / "finetuning.pt").exists()
    capsys.readouterr()
    assert run(monkeypatch, script, tmp_path / "run", "--out", tmp_path / "tuned", *few) == 2
    assert "exists" in capsys.readouterr().err
    assert run(monkeypatch, script, tmp_path / "run", *few) == 2
    assert "--out" in capsys.readouterr().err
    assert run(monkeypatch, script, tmp_path / "run", "--out", tmp_path / "x", "--clusters", "1") == 2
    assert "clusters: expected an integer >= 2, got 1" in capsys.readouterr().err
    assert run(monkeypatch, script, tmp_path / "run", "--out", tmp_path / "x", "--branches", "clean") == 2
    assert "branches: expected one of adv, both, got 'clean'" in capsys.readouterr().err
    assert run(monkeypatch, script, tmp_path / "run", "--out", tmp_path / "both", "--branches", "both", *few) == 0
    assert load_network(tmp_path / "both").network.norm == "branch"
    lonely = tmp_path / "alone.pt"
    lonely.write_bytes((tmp_path / "run" / "checkpoints" / "last.pt").read_bytes())
    assert run(monkeypatch, script, lonely, "--out", tmp_path / "x", *few) == 2
    assert "--data cifar10" in capsys.readouterr().err


def test_settings_out_of_range_are_named():
    with pytest.raises(ConfigError, match="beta: expected a finite number >= 0"):
        load_config(LPAFTConfig, {"beta": float("nan")})
