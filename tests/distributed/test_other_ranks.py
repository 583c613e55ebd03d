"""Supervised training, evaluation and the instance environment on two and four processes against one."""

import numpy as np
import pytest
import torch
from worlds import run_tasks

from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.storage.checkpoint import save_checkpoint

EXACT = {"rtol": 1e-5, "atol": 1e-9}
METHODS = {
    "pgd_at": {},
    "trades": {"norm": "l2", "epsilon": "128/255", "step_size": "64/255"},
    "mart": {},
    "consistency": {},
    "rebat": {"ema.start_epoch": 0, "augment.cutmix": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds")
    config = load_config(ExperimentConfig, "tiny")
    save_checkpoint(folder / "target.pt", ContrastiveLearner(config).state_dict())
    return folder


def tasks(folder, size):
    supervised = {
        f"supervised:{method}": {"place": folder / f"{method}-{size}", "method": method, **options}
        for method, options in METHODS.items()
    }
    evaluated = {"checkpoint": folder / "target.pt", "out": folder / f"evaluation-{size}"}
    return {**supervised, "accuracies": {}, "evaluation": evaluated, "environment": {}, "refusals": {}}


@pytest.fixture(scope="module")
def alone(folder):
    return run_tasks(folder, 1, tasks(folder, 1))[0]


@pytest.fixture(scope="module", params=[2, 4])
def together(folder, request):
    return run_tasks(folder, request.param, tasks(folder, request.param))


@pytest.mark.parametrize("method", METHODS)
def test_supervised_training_is_that_of_one_process(alone, together, method):
    expected = alone[f"supervised:{method}"]
    for found in (rank[f"supervised:{method}"] for rank in together):
        torch.testing.assert_close(found["weights"], expected["weights"], **EXACT)
        if method == "rebat":
            torch.testing.assert_close(found["average"], expected["average"], **EXACT)
        assert found["test"] == expected["test"]
        assert found["validation"] == expected["validation"]
        for line, wanted in zip(found["lines"], expected["lines"], strict=True):
            wanted.pop("train/logit_spread", None)  # a standard deviation of each rank's own rows
            line.pop("train/logit_spread", None)
            assert line == pytest.approx(wanted, rel=1e-5, abs=1e-9)


def test_accuracies_are_those_of_one_process(alone, together):
    for found in together:
        assert found["accuracies"] == alone["accuracies"]
    assert alone["accuracies"]["linf"]["correct"] < alone["accuracies"]["clean"]["correct"]


def test_an_evaluation_holds_what_one_process_measures(alone, together):
    def measured(results):
        (network,) = results["networks"].values()
        return {
            name: {key: value for key, value in entry.items() if key != "seconds"}
            for name, entry in network["measurements"].items()
        }

    assert measured(together[0]["evaluation"]) == measured(alone["evaluation"])
    assert together[0]["evaluation"]["status"] == "complete"
    assert len(measured(alone["evaluation"])) == 4


def test_the_instance_environment_trains_one_network_in_all_processes(alone, together):
    for step, expected in enumerate(alone["environment"]["steps"]):
        parts = [rank["environment"]["steps"][step] for rank in together]
        for column in range(3):
            whole = np.concatenate([part[column] for part in parts])
            np.testing.assert_allclose(whole, expected[column], rtol=1e-5, atol=1e-9)
        for part in parts:
            assert part[3].mean() == pytest.approx(expected[3].mean(), rel=1e-5)
            assert part[4].all() == expected[4].all() == (step == 2)
    assert together[0]["environment"]["num_envs"] == 16 // len(together)


def test_what_cannot_be_spread_is_named(together):
    size = len(together)
    for said in (rank["refusals"] for rank in together):
        if size == 4:
            assert said["batch"] == "learner.batch_size: expected a multiple of the 4 processes, got 18"
        assert said["accumulate"].startswith(f"learner.accumulate: expected at most the {16 // size} images")
        assert said["sync_bn"].startswith("learner.sync_bn: torch.nn.SyncBatchNorm needs CUDA, the device is cpu")
        assert said["device"].startswith("device: cuda:0 is one device, there are")
