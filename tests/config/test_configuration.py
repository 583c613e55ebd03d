"""Configurations: presets, files, overrides, the command line, and what is said about mistakes."""

from typing import get_args, get_type_hints

import pytest
import yaml
from fuzzing import cases
from hypothesis import example, given
from hypothesis import strategies as st

from astra_env.config.lists import gather, spread
from astra_env.config.reading import build_parser, from_dict, load_config, parse_command_line, presets, to_dict, to_yaml
from astra_env.config.schema import ExperimentConfig
from astra_env.errors import AstraError, ConfigError
from astra_env.evaluation.campaign.config import EvaluationConfig


def command_line(*arguments):
    return from_dict(ExperimentConfig, parse_command_line(build_parser(ExperimentConfig), list(arguments)))


@pytest.mark.parametrize("name", presets())
def test_every_preset_loads_and_survives_a_round_trip_through_yaml(name):
    config = load_config(ExperimentConfig, name)
    assert load_config(ExperimentConfig, yaml.safe_load(to_yaml(config))) == config


def test_the_published_settings_are_in_the_cifar10_preset():
    config = load_config(ExperimentConfig, "cifar10")
    learner = config.learner
    assert (learner.batch_size, learner.epochs, learner.learning_rate, learner.warmup_epochs) == (512, 1000, 5.0, 10)
    assert (learner.momentum, learner.weight_decay, learner.trust_coefficient) == (0.9, 1e-6, 1e-3)
    assert (learner.temperature, learner.mixed_weight, learner.reward, config.seed) == (0.5, 0.5, "astra", 3407)
    assert (config.policy, config.policy_args) == ("reinforce", {"preset": "paper"})
    assert (config.target.width, config.target.hidden_dim, config.target.feature_dim) == (64, 2048, 512)
    assert {"tiny", "quickstart", "cifar10", "cifar100", "stl10", "tiny_imagenet"} <= set(presets())


def test_file_and_dotted_overrides_apply_in_order(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("learner: {batch_size: 8, epochs: 3}\npolicy_args: {preset: paper}\n")
    config = load_config(ExperimentConfig, path, {"learner.batch_size": 32, "policy_args.width": 8})
    assert (config.learner.batch_size, config.learner.epochs) == (32, 3)
    assert config.policy_args == {"preset": "paper", "width": 8}


def test_command_line_takes_presets_and_dotted_overrides():
    config = command_line("--config", "tiny", "--learner.batch_size", "64", "--views.crop_scale", "[0.5, 1]")
    assert config.learner.batch_size == 64
    assert config.views.crop_scale == (0.5, 1.0)
    assert config.target.width == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"learner.batch": 1}, "learner.batch: unknown configuration key; did you mean 'batch_size'"),
        ({"nonsense": 1}, "nonsense: unknown configuration key"),
        ({"learner.batch_size": "many"}, "learner.batch_size: expected int, got many"),
        ({"learner.batch_size": None}, "learner.batch_size: expected a value, got null"),
        ({"learner": 3}, "learner: expected a section of settings, got 3"),
        ({"target.norm": "layer"}, "target.norm: expected one of branch, single, group, got 'layer'"),
        ({"views.crop_scale": [0.5, 0.1]}, "views.crop_scale"),
        ({"views.flip_probability": 2}, r"views.flip_probability: expected a number in \[0, 1\], got 2"),
        ({"learner.total_steps": 0}, "learner.total_steps: expected an integer >= 1, got 0"),
        ({"learner.epochs": "many"}, "learner.epochs: expected an integer >= 1, got 'many'"),
        ({"learner.temperature": float("inf")}, "learner.temperature: expected a finite number > 0, got inf"),
        ({"learner.warmup_epochs": float("nan")}, "learner.warmup_epochs: expected a finite number >= 0, got nan"),
        ({"run.threads": 0}, "run.threads: expected an integer >= 1, got 0"),
        ({"env.divergence_penalty": -float("inf")}, "env.divergence_penalty: expected a finite number, got -inf"),
        ({"learner.precision": "fp8"}, "learner.precision: expected one of fp32, bf16, got 'fp8'"),
    ],
)
def test_mistakes_are_named_in_one_line(overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(ExperimentConfig, "tiny", overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["target.head", "learner.attack_mode", "run.on_divergence", "learner.compile"])
def test_the_help_shows_choices(name):
    *sections, field = name.split(".")
    hint = ExperimentConfig
    for part in (*sections, field):
        hint = get_type_hints(hint)[part]
    assert f"--{name} {{{','.join(get_args(hint))}}}" in " ".join(build_parser(ExperimentConfig).format_help().split())


def test_a_configurations_numbers_are_pythons_own():
    config = load_config(ExperimentConfig, "tiny", {"views.flip_probability": 1, "learner.epochs": 3})
    assert type(config.views.flip_probability) is float
    assert type(config.learner.epochs) is int
    assert load_config(ExperimentConfig, yaml.safe_load(to_yaml(config))) == config


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no file and no preset called 'nowhere'; presets: .*tiny"):
        load_config(ExperimentConfig, "nowhere")
    broken = tmp_path / "broken.yaml"
    broken.write_text("learner: [1, 2\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(ExperimentConfig, broken)
    broken.write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(ExperimentConfig, broken)
    broken.write_text("[1, 2]")
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_config(ExperimentConfig, broken)


def test_misspelt_options_are_not_taken_for_abbreviations():
    with pytest.raises(ConfigError, match=r"--learner\.batch_siz"):
        command_line("--learner.batch_siz", "3")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(
    ["seed", "policy", "policy_args", "learner", "strategy", "views", "learner.batch_size", "strategy.epsilon", "x"]
)


@cases(60)
@given(st.dictionaries(KEYS, PLAIN, max_size=3))
@example({"learner": {"line\x1eseparator\n\x1b[31m": None}})
def test_whatever_the_values_the_loader_answers_with_a_configuration_or_a_typed_error(values):
    try:
        assert isinstance(to_dict(load_config(ExperimentConfig, values)), dict)
    except AstraError as error:
        assert str(error).isprintable()  # noqa: PT017 - a configuration is as good an answer


def test_options_reach_into_dictionaries_of_dictionaries_and_change_nothing_else():
    before = load_config(ExperimentConfig, "supervised_tiny").learner.kind_args
    nested = ["--learner.kind_args.network.width", "8", "--learner.kind_args.network.normalize=data"]
    deeper = ["--learner.kind_args.method_args.beta", "3", "--learner.kind_args.optimizer.milestones", "[1, 2]"]
    config = command_line("--config", "supervised_tiny", *nested, *deeper, "--learner.kind_args.method", "trades")
    assert config.learner.kind_args == {
        **before,
        "method": "trades",
        "network": {"name": "resnet18", "width": 8, "normalize": "data"},
        "method_args": {"beta": 3},
        "optimizer": {"milestones": [1, 2]},
    }
    with pytest.raises(ConfigError, match=r"learner\.kind_args\.network\.width: expected a value"):
        command_line("--learner.kind_args.network.width")
    with pytest.raises(ConfigError, match=r"learner\.kind_args\.network\.width"):
        command_line("--learner.kind_args.network.width=[1")


@pytest.mark.parametrize(
    "written", ["[8/255, 4/255]", "8/255,4/255", "8/255, 4/255", "8 / 255, 4/255", "['8/255' '4/255']"]
)
@pytest.mark.parametrize("joined", [True, False])
def test_a_list_is_a_list_however_it_is_written(written, joined):
    given = [f"--probe.epsilon={written}"] if joined else ["--probe.epsilon", written]
    assert command_line(*given, "--seed", "3").probe.epsilon == ["8/255", "4/255"]


def test_a_list_may_be_words_of_their_own_and_ends_where_something_else_begins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "first").mkdir()
    config = command_line("--strategy.steps", "3", "5", "--probe.epsilon", "8/255,", "4/255", "--seed", "3")
    assert (config.strategy.steps, config.probe.epsilon, config.seed) == ([3, 5], ["8/255", "4/255"], 3)
    given = ["--attacks", "pgd", "cw", "runs/a", "--attack.epsilon", "8/255", "model.pt", "--curves", "path", "first"]
    assert gather(given, EvaluationConfig) == [
        "--attacks=[pgd, cw]", "runs/a", "--attack.epsilon=[8/255]", "model.pt", "--curves=[path]", "first",
    ]  # fmt: skip
    assert spread(["--seeds", "1,2", "[3, 4]", "--x", "a,b"], ["--seeds"]) == [
        "--seeds",
        "1",
        "2",
        "3",
        "4",
        "--x",
        "a,b",
    ]
    assert spread(["--seeds=[1, 2]"], ["--seeds"]) == ["--seeds", "1", "2"]
