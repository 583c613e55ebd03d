"""Whole evaluations: numbers of the parts, one file, continuation, choices that never see the test images."""

import json
from dataclasses import replace

import pytest
import torch
import yaml
from random_weights import randomized

from astra_env.config.reading import load_config
from astra_env.data import label_fraction, split_validation
from astra_env.errors import CheckpointError, ConfigError, DataError
from astra_env.evaluation import clean_accuracy, linear_probe, robust_accuracy
from astra_env.evaluation.campaign.config import EvaluationConfig
from astra_env.evaluation.campaign.heads import classifier_for
from astra_env.evaluation.campaign.loading import load_network
from astra_env.evaluation.campaign.report import chosen, markdown
from astra_env.evaluation.campaign.runner import evaluate
from astra_env.evaluation.measures.batches import take
from astra_env.models import resnet18, target_resnet18
from astra_env.plotting.evaluation import plot_evaluation
from astra_env.storage.checkpoint import save_checkpoint
from astra_env.strategy import Attack

QUICK = {
    "data.max_test_images": 60,
    "head.epochs": 3,
    "head.augment": False,
    "attack.epsilon": [8 / 255],
    "attack.steps": 2,
}


def config(**changes):
    return load_config(EvaluationConfig, None, {**QUICK, **changes}, package="astra_env.evaluation.campaign.presets")


def write_run(folder, *, seeds=(0,), settings=None):
    """A run directory with one kept checkpoint a seed and the last one again as ``last.pt``."""
    for step, seed in enumerate(seeds, start=1):
        target = randomized(target_resnet18(width=4, blocks=(1, 1), feature_dim=6, hidden_dim=8), seed)
        state = {"target": target.state_dict(), "step": 10 * step}
        save_checkpoint(folder / "checkpoints" / f"step_{10 * step:08d}.pt", state)
        save_checkpoint(folder / "checkpoints" / "last.pt", state)
    run = {"data": {"name": "digits", "root": "data", "image_size": None}, "seed": 3, **(settings or {})}
    (folder / "config.yaml").write_text(yaml.safe_dump(run))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "first", seeds=(0, 1))


def test_an_evaluation_is_its_parts(run, digits, tmp_path):
    found = evaluate(config(label_fraction=0.5, attacks=["pgd", "cw"]), [run], tmp_path)
    record = found["networks"]["first"]
    part = label_fraction(digits[0], 0.5, 0)
    probed = linear_probe(load_network(run).network, part, epochs=3, augment=False, learning_rate=0.1)
    test = take(digits[1], 60)
    measured = record["measurements"]
    assert measured["clean"]["correct"] == clean_accuracy(probed, test).correct
    for name, objective in (("PGD-2 linf 8/255", "cross_entropy"), ("C&W-margin PGD-2 linf 8/255", "margin")):
        expected = robust_accuracy(probed, test, Attack(8 / 255, 2 / 255, 2), objective=objective, batch_size=250)
        assert (measured[name]["correct"], measured[name]["total"]) == (expected.correct, 60)
        assert measured[name]["interval"] == list(expected.interval)
    assert record["training"]["images"] == len(part)
    assert found["status"] == "complete"
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(found))
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_an_interrupted_evaluation_is_partial_and_continues_where_it_was(run, tmp_path):
    calls = []

    def interrupts(name, model, test):
        calls.append("hook")
        if len(calls) == 1:
            raise KeyboardInterrupt
        return {"answer": 42}

    with pytest.raises(KeyboardInterrupt):
        evaluate(config(), [run], tmp_path, hooks={"extra": interrupts})
    partial = json.loads((tmp_path / "results.json").read_text())
    assert partial["status"] == "partial"
    assert "**Partial" in markdown(partial)
    before = partial["networks"]["first"]["measurements"]
    assert set(before) == {"clean", "PGD-2 linf 8/255"}
    whole = evaluate(config(), [run], tmp_path, hooks={"extra": interrupts})
    after = whole["networks"]["first"]["measurements"]
    assert whole["status"] == "complete"
    assert {name: after[name] for name in before} == before
    assert after["extra"]["answer"] == 42
    evaluate(config(), [run], tmp_path, hooks={"extra": interrupts})
    assert len(calls) == 2


def test_more_can_be_measured_into_the_same_file_but_never_under_other_conditions(run, tmp_path):
    evaluate(config(), [run], tmp_path)
    more = evaluate(config(curves=["noise"], **{"attack.epsilon": [4 / 255]}), [run], tmp_path)
    assert set(more["networks"]["first"]["measurements"]) == {
        "clean", "PGD-2 linf 8/255", "PGD-2 linf 4/255", "curve: noise",
    }  # fmt: skip
    again = evaluate(config(**{"attack.step_size": "8/255"}), [run], tmp_path)["networks"]["first"]["measurements"]
    assert again["PGD-2 linf 8/255"]["settings"]["step_size"] == 8 / 255
    with pytest.raises(ConfigError, match="was measured with seed 0, now it is 1; choose another --out"):
        evaluate(config(seed=1), [run], tmp_path)


def test_an_attempt_that_measured_nothing_binds_no_later_one(run, tmp_path):
    with pytest.raises(DataError, match="leaves none"):
        evaluate(config(label_fraction=1e-4), [run], tmp_path)
    assert evaluate(config(label_fraction=0.5), [run], tmp_path)["conditions"]["label_fraction"] == 0.5


def test_results_of_other_weights_are_not_continued(tmp_path):
    folder = write_run(tmp_path / "run", seeds=(0,))
    evaluate(config(), [folder], tmp_path / "out")
    write_run(folder, seeds=(5,))
    with pytest.raises(ConfigError, match="holds results of other weights of 'run'"):
        evaluate(config(), [folder], tmp_path / "out")


def test_several_networks_make_one_table_and_one_figure(run, tmp_path):
    torch.save(randomized(resnet18(10, width=4)).state_dict(), tmp_path / "supervised.pt")
    found = evaluate(
        config(curves=["radius", "path"], **{"data.name": "digits", "data.max_test_images": 20}),
        [run, tmp_path / "supervised.pt", run / "checkpoints" / "step_00000010.pt"],
        tmp_path / "out",
    )
    report = markdown(found)
    assert list(found["networks"]) == ["first", "supervised", "first/step_00000010"]
    assert "| first | slf | 20 |" in report
    assert "| supervised | none | 20 |" in report
    assert "| network | protocol | images | clean | PGD-2 linf 8/255 |" in report
    figure = plot_evaluation(found, tmp_path / "figure.png")
    assert figure.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_learning_rate_is_chosen_on_held_out_training_images_alone(run, digits, tmp_path):
    train, test = digits
    shuffled = replace(test, labels=test.labels.roll(1))
    settings = config(**{"head.learning_rate": [1e-6, 0.3]})
    loaded = load_network(run)
    picked = [
        classifier_for(settings, loaded, train, images, tmp_path / name, torch.device("cpu"))
        for name, images in (("a", test), ("b", shuffled))
    ]
    assert [trained.description["learning_rate"] for trained in picked] == [0.3, 0.3]
    assert torch.equal(picked[0].classifier.head.weight, picked[1].classifier.head.weight)
    scores = picked[0].description["validation"]
    assert scores["0.3"]["accuracy"] > scores["1e-06"]["accuracy"]
    assert scores["0.3"]["total"] == 144


def test_no_state_of_head_training_is_left_behind(run, tmp_path):
    settings = config(label_fraction=0.1, **{"head.learning_rate": [0.1, 0.3], "head.augment": True})
    evaluate(settings, [run], tmp_path)
    assert [path.suffixes for path in (tmp_path / "models").iterdir()] == [[".pt"]]


def test_the_report_warns_of_gradients_that_tell_nothing(tmp_path):
    pytest.importorskip("pyautoattack")
    network = randomized(resnet18(10, width=4))
    with torch.no_grad():
        network.linear.weight.zero_()
        network.linear.bias.copy_(torch.arange(10) == 0)
    torch.save(network.state_dict(), tmp_path / "always_zero.pt")
    settings = config(attacks=["pgd", "autoattack_quick"], **{"data.name": "digits"})
    found = evaluate(settings, [tmp_path / "always_zero.pt"], tmp_path / "out")
    name = "AutoAttack subset (APGD only) linf 8/255"
    measured = found["networks"]["always_zero"]["measurements"][name]
    assert measured["correct"] > 0
    assert any("zero gradient" in warning for warning in measured["warnings"])
    assert f"## Warnings\n\n- always_zero, {name}: {measured['warnings'][0]}" in markdown(found)


def test_every_kept_checkpoint_is_measured_and_held_out_images_choose(run, digits, tmp_path):
    found = evaluate(config(**{"head.epochs": 10}), [run], tmp_path, every=True)
    assert [record["epoch"] for record in found["networks"].values()] == [10, 20]
    (choice,) = chosen(found)
    held_out = {
        name: record["measurements"]["held-out PGD-2 linf 8/255"]["accuracy"]
        for name, record in found["networks"].items()
    }
    assert choice["best"] == max(held_out, key=lambda name: held_out[name])
    assert choice["last"] == "first/step_00000020"
    best = found["networks"][choice["best"]]["measurements"]["PGD-2 linf 8/255"]
    assert choice["best_accuracy"] == best["accuracy"]
    assert "## Choice of checkpoint" in markdown(found)
    assert found["networks"]["first/step_00000010"]["training"]["images"] == len(digits[0]) - 144
    plot_evaluation(found, tmp_path / "figure.png")


def test_the_slice_that_a_run_held_out_itself_is_used_again(digits, tmp_path):
    from astra_env.evaluation.campaign.runner import held_out_slice
    from astra_env.randomness import derive_seed

    run = write_run(tmp_path / "run", settings={"validation": {"size": 50}})
    rest, held_out = held_out_slice(config(), load_network(run), digits[0])
    expected = split_validation(digits[0], 50, derive_seed(3, "split"))[1]
    assert torch.equal(held_out.images, expected.images)
    assert len(rest) == len(digits[0]) - 50


def test_the_slice_held_out_of_a_part_of_the_training_images_is_found_again(tmp_path):
    from astra_env.data import load_dataset
    from astra_env.evaluation.campaign.runner import held_out_slice
    from rpat.config import RPATConfig
    from rpat.splits import load_splits

    run = write_run(
        tmp_path / "run",
        settings={
            "data": {"name": "digits", "root": "data", "image_size": 8, "max_images": 200},
            "validation": {"size": 40},
        },
    )
    trained = load_config(
        RPATConfig,
        {"data": {"name": "digits", "image_size": 8, "max_images": 200}, "validation": {"size": 40}, "seed": 3},
        package="rpat.presets",
    ).resolved()
    fitted, expected = load_splits(trained, torch.device("cpu"))
    rest, held_out = held_out_slice(config(), load_network(run), load_dataset("digits", image_size=8))
    assert torch.equal(held_out.images, expected.images)
    assert torch.equal(rest.images, fitted.images)


def test_adversarial_fine_tuning_is_kept_and_not_repeated(run, tmp_path):
    settings = config(protocol="aff", label_fraction=0.05, **{"head.epochs": 1, "head.batch_size": 32})
    first = evaluate(settings, [run], tmp_path)
    (kept,) = (tmp_path / "models").glob("first-aff-*.pt")
    stamp = kept.stat().st_mtime_ns
    second = evaluate(replace(settings, curves=["noise"]), [run], tmp_path)
    assert kept.stat().st_mtime_ns == stamp
    assert second["networks"]["first"]["training"] == first["networks"]["first"]["training"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "linear"}, "protocol: expected one of auto, slf, alf, aff, semi_supervised, none, got 'linear'"),
        ({"attacks": ["fgsm"]}, "attacks: expected one of pgd, cw, autoattack, autoattack_quick, got 'fgsm'"),
        ({"curves": ["loss"]}, "curves: expected one of radius, noise, path"),
        ({"label_fraction": 0.0}, "label_fraction: expected a number above 0"),
        ({"attack.epsilon": [8]}, "attack.epsilon"),
        ({"attack.steps": 0}, "attack.steps: expected an integer >= 1, got 0"),
        ({"head.epochs": 0}, "head.epochs: expected an integer >= 1"),
        ({"data.max_test_images": 0}, "data.max_test_images: expected an integer >= 1"),
        ({"protocl": "slf"}, "did you mean 'protocol'"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_an_encoder_cannot_be_evaluated_without_a_head(run, tmp_path):
    with pytest.raises(CheckpointError, match="choose --protocol slf, alf, aff or semi_supervised"):
        evaluate(config(protocol="none"), [run], tmp_path)


def test_a_file_outside_runs_needs_a_data_set(tmp_path):
    torch.save(resnet18(10, width=4).state_dict(), tmp_path / "model.pt")
    with pytest.raises(ConfigError, match=r"data\.name: .*lies in no run directory"):
        evaluate(config(), [tmp_path / "model.pt"], tmp_path / "out")


def test_runs_on_different_images_need_to_be_told_which(run, tmp_path):
    other = write_run(tmp_path / "other", settings={"data": {"name": "cifar10", "root": "data", "image_size": 16}})
    with pytest.raises(ConfigError, match=r"data\.name: the run of .* has digits and that of .* has cifar10; .*apart"):
        evaluate(config(), [run, other], tmp_path / "out")
    found = evaluate(config(**{"data.name": "digits"}), [run, other], tmp_path / "out")
    assert list(found["networks"]) == ["first", "other"]


@pytest.mark.parametrize(
    ("protocol", "dataset", "rate"),
    [("slf", "cifar10", 0.01), ("alf", "cifar100", 0.05), ("slf", "stl10", 0.1), ("aff", "cifar10", 0.1)],
)
def test_published_learning_rates_are_the_defaults(protocol, dataset, rate):
    assert EvaluationConfig().learning_rates(protocol, dataset) == [rate]


def test_a_run_without_kept_checkpoints_says_how_to_keep_them(tmp_path):
    write_run(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step_00000010.pt").unlink()
    with pytest.raises(CheckpointError, match=r"train with --run\.keep_every N"):
        evaluate(config(), [tmp_path / "run"], tmp_path / "out", every=True)


def test_a_foreign_result_file_is_not_overwritten(run, tmp_path):
    (tmp_path / "results.json").write_text('{"mine": 1}')
    with pytest.raises(ConfigError, match="not a result file of ours"):
        evaluate(config(), [run], tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == {"mine": 1}
