"""Learners by name: registered, provided by installed packages, imported, refused."""

from importlib.metadata import entry_points
from pathlib import Path

import pytest

from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig
from astra_env.errors import ConfigError
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.learner.make import LEARNERS, learner_class, make_learner
from rpat.under_policy.learner import StrategyLearner


class Untrained:
    """Not a learner."""


def test_contrastive_is_the_default_and_takes_no_arguments_of_its_own():
    assert isinstance(make_learner(load_config(ExperimentConfig, "tiny")), ContrastiveLearner)
    with pytest.raises(ConfigError, match=r"learner\.kind_args: contrastive takes none, got method"):
        load_config(ExperimentConfig, "tiny", {"learner.kind_args": {"method": "trades"}})


def test_a_name_of_an_installed_package_is_found_through_its_entry_points(tmp_path: Path, monkeypatch):
    installed = tmp_path / "somebody-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(
        "[astra_env.learners]\ntheirs = rpat.under_policy.learner:StrategyLearner\nbroken = no_such_module:Learner\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert learner_class("theirs") is StrategyLearner
    with pytest.raises(ConfigError, match="cannot import module 'no_such_module'"):
        learner_class("broken")
    with pytest.raises(ConfigError, match=r"expected one of .*broken, contrastive, .*theirs.* got 'their'"):
        learner_class("their")


def test_this_distribution_provides_supervised():
    if "supervised" not in {entry.name for entry in entry_points(group=LEARNERS.group)}:
        pytest.skip("the installed metadata is older than the entry point 'supervised'; install the package again")
    learner = make_learner(load_config(ExperimentConfig, "supervised_tiny"))
    assert isinstance(learner, StrategyLearner)


def test_unknown_names_say_how_names_come_about():
    with pytest.raises(ConfigError, match=r"learner\.kind: .*contrastive.*'astra_env\.learners'"):
        learner_class("unsupervised")


def test_what_is_no_learner_is_refused_before_it_is_built():
    with pytest.raises(ConfigError, match=r"learner\.kind: .*Untrained' cannot train, it lacks .*observation"):
        learner_class(f"{__name__}:Untrained")
    with pytest.raises(ConfigError, match="lacks learning_rate, load_state_dict, observation, state_dict, step"):
        learner_class("astra_env.learner.protocol:Learner")
    with pytest.raises(ConfigError, match="expected a class, but 'math:pi' is float"):
        learner_class("math:pi")
