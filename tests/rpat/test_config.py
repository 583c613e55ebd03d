"""Presets, the settings a method brings, and what bad input is told."""

import warnings
from dataclasses import replace

import pytest
import yaml

from astra_env.config.reading import from_dict, load_config, presets, to_dict, to_yaml
from astra_env.errors import ConfigError, InputError
from rpat.config import PRESET_PACKAGE, RPATConfig
from rpat.schedules import cosine, default_milestones, piecewise


def config(source=None, **overrides):
    return load_config(RPATConfig, source, overrides, package=PRESET_PACKAGE)


@pytest.mark.parametrize("name", presets(PRESET_PACKAGE))
def test_every_preset_loads_and_round_trips_through_yaml(name):
    loaded = load_config(RPATConfig, name, package=PRESET_PACKAGE).resolved()
    assert from_dict(RPATConfig, yaml.safe_load(to_yaml(loaded))).resolved() == loaded


def test_presets_cover_the_papers_data_sets_in_both_norms():
    names = presets(PRESET_PACKAGE)
    assert {f"{data}_{norm}" for data in ("cifar10", "cifar100", "tiny_imagenet") for norm in ("linf", "l2")} < set(
        names
    )
    l2 = config("cifar100_l2")
    assert (l2.norm, l2.budget.steps) == ("l2", 10)
    assert (l2.budget.epsilon, l2.budget.step_size) == pytest.approx((128 / 255, 15 / 255))
    assert l2.data.name == "cifar100"


def test_presets_of_the_papers_keep_the_last_batch_and_those_of_rebat_are_the_released_ones():
    assert not any(
        config(f"{data}_{norm}").drop_last for data in ("cifar10", "tiny_imagenet") for norm in ("linf", "l2")
    )
    for data in ("cifar10", "cifar100"):
        rebat = config(f"rebat_{data}").resolved()
        assert (rebat.method, rebat.data.name, rebat.epochs, rebat.drop_last) == ("rebat", data, 200, False)
        assert (rebat.make_method().attack_mode, rebat.network.normalize) == ("train", "cifar10")
        plain = config(f"{data}_linf", method="rebat", robust_perception=False).resolved()
        assert replace(rebat, method_args={}, network=replace(rebat.network, normalize="data")) == plain


@pytest.mark.parametrize(
    ("method", "epochs", "milestones", "factor", "padding", "autoaugment", "average"),
    [
        ("pgd_at", 110, [100, 105], 0.1, "zero", "never", False),
        ("trades", 110, [100, 105], 0.1, "zero", "never", False),
        ("consistency", 200, [100, 150], 0.1, "zero", "second_half", False),
        ("rebat", 200, [100, 150], 1 / 1.5, "reflect", "never", True),
    ],
)
def test_null_settings_follow_the_method(method, epochs, milestones, factor, padding, autoaugment, average):
    settled = config("cifar10_linf", method=method).resolved()
    assert (settled.epochs, settled.optimizer.milestones, settled.optimizer.factor) == (epochs, milestones, factor)
    assert (settled.augment.padding_mode, settled.augment.autoaugment) == (padding, autoaugment)
    assert (settled.ema.enabled, settled.ema.start_epoch, settled.ema.decay) == (average, 105, 0.999)


def test_given_settings_win_over_the_methods():
    settled = config(method="rebat", epochs=120, **{"optimizer.factor": 0.2, "network.normalize": "none"}).resolved()
    assert (settled.epochs, settled.optimizer.milestones) == (120, [60, 90])
    assert (settled.optimizer.factor, settled.network.normalize) == (0.2, "none")


def test_learning_rate_falls_at_the_milestones_of_both_lengths():
    assert default_milestones(110) == [100, 105]
    assert default_milestones(200) == [100, 150]
    assert default_milestones(300) == [150, 225]
    assert [piecewise(epoch, [100, 105], 0.1) for epoch in (0, 99)] == [1, 1]
    assert [piecewise(epoch, [100, 105], 0.1) for epoch in (100, 104, 105)] == pytest.approx([0.1, 0.1, 0.01])
    assert [cosine(epoch, 10) for epoch in (0, 5, 10)] == pytest.approx([1, 0.5, 0])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"method": "fgsm"}, r"^method: expected one of consistency, mart, .* or 'module:attribute', got 'fgsm'$"),
        ({"norm": "l1"}, r"^norm: expected one of l2, linf or 'module:attribute', got 'l1'"),
        ({"epsilon": 8}, r"^epsilon: expected a number in \[0, 1\] pixel units, got 8; in 0-255 units write '8/255'$"),
        ({"step_size": 2}, r"^step_size: .* got 2; in 0-255 units write '2/255'$"),
        ({"norm": "l2", "epsilon": 128}, r"^epsilon: .* got 128; in 0-255 units write '128/255'$"),
        ({"epsilon": "8/0"}, r"^epsilon: expected a number or a fraction"),
        ({"rp_start_epoch": 110}, r"^rp_start_epoch: expected 0\.\.109 in a run of 110 epochs, got 110, .*lower it"),
        ({"method": "consistency", "method_args": {"views": 1}}, r"^method_args.views: .* got 1; set it to 2"),
        ({"method": "rebat", "epochs": 100}, r"^ema.start_epoch: expected 0\.\.99 .* got 105, .*lower --ema"),
        ({"method": "rebat", "ema.enabled": False}, r"^ema.enabled: rebat learns .* set --ema.enabled true$"),
        ({"method": "mart", "augment.cutmix": True}, r"^augment.cutmix: mart needs one class per image"),
        ({"method": "consistency", "augment.cutmix": True}, r"^augment.cutmix: consistency needs one class per image"),
        (
            {
                "method": "rebat",
                "ema.start_epoch": 0,
                "method_args": {"attack_mode": "train"},
                "learner.fold_batchnorm": True,
            },
            r"^method_args.attack_mode: rebat attacks .* cannot be folded .*; set learner.fold_batchnorm false or",
        ),
        (
            {"network.normalize": "cifar"},
            r"^network.normalize: expected one of none, data, imagenet, cifar10, cifar100",
        ),
        ({"rp_rate": 1.5}, r"^rp_rate: expected a number in \[0, 1\], got 1.5"),
        ({"rp_weight": -1.0}, r"^rp_weight: expected a finite number >= 0, got -1"),
        ({"optimizer.milestones": [9, 3]}, r"^optimizer.milestones: expected rising epochs >= 0, got \[9, 3\]"),
        ({"augment.autoaugment": "late"}, r"^augment.autoaugment: expected one of never, always, second_half"),
        ({"network.name": "vgg"}, r"^network: expected one of bottleneck_resnet26"),
        ({"steps": -1}, r"^steps: expected an integer >= 0, got -1"),
        ({"epochs": 0}, r"^epochs: expected an integer >= 1, got 0"),
        ({"optimizer.learning_rate": 0.0}, r"^optimizer.learning_rate: expected a finite number > 0, got 0"),
    ],
)
def test_bad_values_are_told_in_one_line_with_field_value_and_remedy(overrides, message):
    with pytest.raises(InputError, match=message) as caught:
        config(None, **overrides)
    assert "\n" not in str(caught.value)


def test_odd_but_usable_values_are_warned_of():
    with pytest.warns(UserWarning, match="step_size: 9/255 is larger than epsilon 8/255"):
        config(None, step_size="9/255")
    with pytest.warns(UserWarning, match="epsilon: 2 is a large l2 length"):
        config(None, norm="l2", epsilon=2.0)
    with pytest.warns(UserWarning, match=r"optimizer.milestones: the learning rate falls at epochs \[100, 105\]"):
        config(None, epochs=30).resolved()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config("cifar10_linf")


def test_a_resumed_run_must_compute_the_same(tmp_path):
    from rpat.resuming import check_same_run

    stored = to_yaml(config("tiny").resolved())
    check_same_run(config("tiny", **{"run.log_every": 3, "device": "auto", "test.steps": 9}).resolved(), stored)
    with pytest.raises(ConfigError, match=r"optimizer.learning_rate: the run was started with 0.05, got 0.1; resume"):
        check_same_run(config("tiny", **{"optimizer.learning_rate": 0.1}).resolved(), stored)


def test_a_run_from_before_a_setting_existed_resumes_with_its_default_only():
    from rpat.resuming import check_same_run

    older = to_dict(config("tiny", method="trades", method_args={"beta": 2.0}).resolved())
    del older["drop_last"]
    stored = yaml.safe_dump(older)
    check_same_run(config("tiny", method="trades", method_args={"beta": 2.0}).resolved(), stored)
    with pytest.raises(ConfigError, match="drop_last: the run was started with True, got False"):
        check_same_run(config("tiny", method="trades", method_args={"beta": 2.0}, drop_last=False).resolved(), stored)
    with pytest.raises(ConfigError, match="method_args: the run was started with None"):
        check_same_run(config("tiny", method="trades").resolved(), stored)
