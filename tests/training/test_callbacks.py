"""What the one loop tells callbacks, and what a checkpoint keeps of them."""

import pytest
import torch

import agents
from astra_env.config.reading import load_config, to_yaml
from astra_env.config.schema import ExperimentConfig
from astra_env.errors import CheckpointError, Diverged
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.storage.run_directory import RunDirectory
from astra_env.training.loop import Callback
from astra_env.training.trainer import Trainer
from rpat import Trainer as SupervisedTrainer


class Notes(Callback):
    """Writes down what it is told; its number of steps goes into checkpoints."""

    def __init__(self, spoil_at=None):
        self.events, self.steps, self.spoil_at = [], 0, spoil_at

    def on_step(self, loop, report):
        self.steps += 1
        self.events.append(f"step {loop.learner.step_count}")
        if loop.learner.step_count == self.spoil_at:
            self.spoil_at = None
            raise Diverged("told so")

    def on_checkpoint(self, loop, report):
        self.events.append("checkpoint")

    def on_end(self, loop):
        self.events.append("end")

    def state_dict(self):
        return {"notes": self.steps}

    def load_state_dict(self, state):
        if state["notes"] < 0:
            raise CheckpointError("notes: fewer than none")
        self.steps = state["notes"]


def astra(place, notes, resume=False):
    small = {"learner.total_steps": 4, "run.checkpoint_every": 2, "probe.enabled": False}
    config = load_config(ExperimentConfig, "tiny", {**small, "run.on_divergence": "rollback", "policy": "random"})
    learner = ContrastiveLearner(config)
    policy = agents.make("random", context=agents.Context(learner.space, seed=0))
    run = RunDirectory(place, to_yaml(config), resume=resume)
    return Trainer(config, learner, policy, run, callbacks=[notes], progress=False)


def test_callbacks_hear_of_steps_checkpoints_and_the_end_in_both_worlds(tmp_path):
    notes = Notes()
    with (trainer := astra(tmp_path / "astra", notes)).run:
        trainer.fit()
    assert notes.events == ["step 1", "step 2", "checkpoint", "step 3", "step 4", "checkpoint", "end"]
    supervised, notes = SupervisedTrainer("tiny", {"run.checkpoint_every": 4, "test.enabled": False}), Notes()
    supervised.callbacks.append(notes)
    supervised.fit(tmp_path / "rpat")
    first = [*(f"step {step}" for step in (1, 2, 3, 4)), "checkpoint"]
    assert notes.events == [*first, "step 5", "step 6", "checkpoint", "end"]


def test_what_a_callback_finds_diverged_goes_back_with_the_callbacks_own_state(tmp_path):
    notes = Notes(spoil_at=3)
    with (trainer := astra(tmp_path, notes)).run:
        assert trainer.fit() == 0
    assert notes.events[:6] == ["step 1", "step 2", "checkpoint", "step 3", "step 3", "step 4"]
    assert (notes.steps, trainer.rollbacks, trainer.trained) == (4, 1, 5)


def test_a_state_that_a_callback_refuses_changes_nothing(tmp_path):
    notes = Notes()
    with (trainer := astra(tmp_path, notes)).run:
        trainer.fit()
        state = trainer.state_dict()
        before = torch.cat([value.flatten().double() for value in trainer.learner.target.state_dict().values()])
        other = {**state, "notes": -1, "rollbacks": 7, "step": 0}
        with pytest.raises(CheckpointError, match="fewer than none"):
            trainer.load_state_dict(other)
    after = torch.cat([value.flatten().double() for value in trainer.learner.target.state_dict().values()])
    assert torch.equal(before, after)
    assert (notes.steps, trainer.rollbacks, trainer.learner.step_count) == (4, 0, 4)
