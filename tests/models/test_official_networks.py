"""Our networks give the official networks' numbers and read their checkpoints, names and all."""

import pytest
import torch
from random_weights import fill_deterministically
from torch import Tensor, nn

from astra_env.models import (
    bottleneck_resnet26,
    load_official,
    preact_resnet18,
    strategy_resnet18,
    target_resnet18,
    wide_resnet,
)

NETWORKS = {
    "target": target_resnet18,
    "strategy": strategy_resnet18,
    "benchmarks_resnet18": bottleneck_resnet26,
    "benchmarks_pre_resnet18": lambda: preact_resnet18(variant="benchmark"),
    "sotas_PreActResNet18": preact_resnet18,
    "sotas_WideResNet34_10": lambda: wide_resnet(34, 10),
    "benchmarks_wrn2810": lambda: wide_resnet(28, 10),
}


class Official(nn.Module):
    """Nothing but parameters and buffers under the official names."""

    def __init__(self, keys: dict[str, list[int]]) -> None:
        super().__init__()
        self.tensors = {name: torch.empty(shape) for name, shape in keys.items()}

    def named_parameters(self):
        return iter(self.tensors.items())

    def named_buffers(self):
        return iter(())


def official_checkpoint(keys: dict[str, list[int]]) -> dict[str, Tensor]:
    tensors = fill_deterministically(Official(keys)).tensors
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("normalize.")}


def assert_close(actual: Tensor, golden: Tensor) -> None:
    assert actual.shape == golden.shape
    assert (actual - golden).abs().max() <= 1e-4 * golden.abs().max()


@pytest.mark.parametrize("name", ["target", "strategy", "benchmarks_resnet18", "benchmarks_pre_resnet18"])
def test_state_dict_has_exactly_the_official_names_and_shapes(name, golden_keys):
    ours = {key: list(tensor.shape) for key, tensor in NETWORKS[name]().state_dict().items()}
    assert ours == golden_keys[name]


def test_target_features_of_both_branches_equal_the_official_ones(golden_astra, golden_keys):
    target = load_official(target_resnet18(), official_checkpoint(golden_keys["target"])).eval()
    with torch.no_grad():
        assert_close(target(golden_astra["images"], "clean"), golden_astra["target_features_normal"])
        assert_close(target(golden_astra["images"], branch="adv"), golden_astra["target_features_pgd"])


def test_strategy_logits_equal_the_official_ones(golden_astra, golden_keys):
    strategy = load_official(strategy_resnet18(), official_checkpoint(golden_keys["strategy"])).eval()
    with torch.no_grad():
        logits = strategy(golden_astra["images"])
    for head, name in zip(logits, ("epsilon", "iterations", "step_size"), strict=True):
        assert_close(head, golden_astra[f"strategy_logits_{name}"])


@pytest.mark.parametrize(
    "name", ["benchmarks_resnet18", "benchmarks_pre_resnet18", "sotas_PreActResNet18", "sotas_WideResNet34_10"]
)
def test_classifier_logits_equal_the_official_ones(name, golden_rpat, golden_keys):
    network = load_official(NETWORKS[name](), official_checkpoint(golden_keys[name])).eval()
    golden = golden_rpat[f"logits_{name}"]
    images = golden_rpat["images"][: len(golden)]
    if name == "benchmarks_pre_resnet18":
        images = images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    with torch.no_grad():
        assert_close(network(images), golden)


def test_benchmark_wide_resnet_checkpoint_loads_whole(golden_keys):
    checkpoint = {name: torch.full(shape, 0.5) for name, shape in golden_keys["benchmarks_wrn2810"].items()}
    network = load_official(wide_resnet(28, 10), checkpoint)
    assert all(
        bool((tensor == 0.5).all()) for name, tensor in network.state_dict().items() if "num_batches" not in name
    )
