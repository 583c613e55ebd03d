"""AttackStrategy-v0: one attack for all views of a chunk of minibatches."""

from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from astra_env.envs.information import information
from astra_env.envs.observation import BOUNDS, TrainingSummary, mean_of
from astra_env.envs.rendering import RENDER_MODES, Recorder
from astra_env.envs.training import TrainingEnv
from astra_env.errors import Diverged, InputError
from astra_env.modes import at_the_door


class AttackStrategyEnv(TrainingEnv, gym.Env[np.ndarray, np.ndarray]):
    """Choose the attack of an adversarial training, a few minibatches at a time.

    ## Description
    A network is trained on clean and on adversarially attacked views of images: by contrastive learning (ASTrA, ICLR
    2025), or by whatever learner `learner.kind` names, such as a classifier (`supervised`; LAS-AT, CVPR 2022). The
    agent chooses the attack: its radius epsilon, its number of PGD steps and the size of a step. A strong attack
    teaches robustness, too strong a one teaches nothing; what is too strong changes as the network learns.

    ## Action space
    `MultiDiscrete([13, 12, 5])`: indices into the grids of the configuration (`strategy.epsilon`, `strategy.steps`,
    `strategy.step_size`), whose lengths they have.

    | Num | Action    | Paper's grid   |
    |-----|-----------|----------------|
    | 0   | epsilon   | (3 ... 15)/255 |
    | 1   | steps     | 3 ... 14       |
    | 2   | step size | (1 ... 5)/255  |

    The attack is applied to every view of the next `env.chunk_steps` minibatches. `DiscreteStrategy` and `BoxStrategy`
    (`astra_env.envs.wrappers`) give the same choice as `Discrete` and `Box` for algorithms that need those.

    ## Observation space
    `Box` of shape `(16,)`, float32. "Mean" is over the minibatches of the last chunk, "smoothed" an exponential average
    over minibatches (0.9). Values outside the bounds are clipped. Until the first step the measured entries are 0.

    | Num | Observation                                                         | Min | Max |
    |-----|---------------------------------------------------------------------|-----|-----|
    | 0   | progress: share of the training budget used up                      | 0   | 1   |
    | 1   | learning rate of the next minibatch / `learner.learning_rate`       | 0   | 1   |
    | 2   | mean clean loss (NT-Xent / log(number of other views))              | 0   | 4   |
    | 3   | mean adversarial loss, likewise                                     | 0   | 4   |
    | 4   | mean mixed loss, likewise                                           | 0   | 4   |
    | 5   | smoothed clean loss                                                 | 0   | 4   |
    | 6   | smoothed adversarial loss                                           | 0   | 4   |
    | 7   | smoothed mixed loss                                                 | 0   | 4   |
    | 8   | clean-adversarial alignment: mean squared distance of unit features | 0   | 4   |
    | 9   | uniformity of the clean features                                    | -8  | 0   |
    | 10  | log(1 + gradient norm)                                              | 0   | 10  |
    | 11  | mean reward                                                         | -10 | 10  |
    | 12  | smoothed reward                                                     | -10 | 10  |
    | 13  | last action: epsilon index / largest index                          | 0   | 1   |
    | 14  | last action: steps index / largest index                            | 0   | 1   |
    | 15  | last action: step size index / largest index                        | 0   | 1   |

    The layout is every learner's; an entry that a learner has nothing for is 0. With `supervised`: entries 2, 3, 5 and
    6 are the cross-entropy of clean and of attacked images / log(classes), before the update, in eval mode; 4 and 7
    the cross-entropy of the mixed images / log(classes), where the method uses them (robust perception); 8 and 9
    alignment and uniformity of the logits, scaled to length 1. A learner of your own shows the terms of its reports
    named `clean_loss`, `adv_loss`, `mixed_loss`, `alignment` and `uniformity`, losses in its `loss_scales`.

    ## Rewards
    The mean over the chunk's minibatches (and their views) of the reward named by `learner.reward`: `astra` (the
    published one: how much the attack raises the contrastive loss, (NT-Xent(adv) - NT-Xent(clean)) / 3), `per_view`
    (the same, by view), `vs_fixed` (over what a fixed attack reaches on the same views and network), `cost_aware`
    (minus a price per PGD step), `constant` (the control), `none` or `module:attribute`. It is measured before the
    update. Rewards of the outcome are measured after the chunk, on images held out of training and test:
    `robust_progress` and `probe_progress` (how much the chunk raised the network's robustness; undiscounted, they add
    up to the last measure minus the first) and `gradient_alignment`. The step in which training diverges is rewarded
    with `env.divergence_penalty` instead. Other learners have rewards of their own; `supervised`: `adv_loss_gain`,
    `look_ahead` (LAS-AT's), `constant`, the outcomes or `module:attribute`.

    ## Starting state
    `reset(seed=s)` builds a fresh network and training from seed `s`; the first `reset()` without a seed takes the
    `seed` that `config` or `overrides` name, else one from entropy, as Gymnasium's own environments do (a preset's
    counts as not named), so that copies differ. A later bare `reset()` follows `env.reset_mode`: `restart` builds one
    from a seed drawn from `np_random`; `continue` goes on with an unfinished training, or gives the network of a
    finished one another budget with a new learning rate schedule. A training that diverged is always replaced by a
    fresh one. `reset(options={"checkpoint": path})` starts a fresh training with the target network's weights of a
    checkpoint; a run directory stands for its `last.pt`.

    ## Episode end
    An episode is one training. *Termination*: the training budget (`learner.total_steps`, `learner.epochs`, or
    `learner.budget` in forward passes) is used up, or training diverged: loss, gradient or reward are not finite. Then
    the observation is finite all the same, `info["diverged"]` is true and the attribute `error` says why. *Truncation*:
    never by itself; `gym.make(..., max_episode_steps=n)` truncates. `spec.max_episode_steps` is the budget in steps of
    the environment, where known.

    ## Information
    `reset()` and `step()` return the same names, NumPy scalars all: the chunk's means of `loss`, its parts
    (`clean_loss`, `adv_loss`, `mixed_loss`, `alignment`, `uniformity`), `grad_norm`, `zero_gradient_share`, the reward
    (`mean_reward`) and what it is made of (`reward_clean_loss`, `reward_adv_loss` and, for `vs_fixed`,
    `reward_reference_loss`: NT-Xent before the update, in eval mode), the attack (`mean_epsilon`, `mean_steps`,
    `mean_step_size`), `learning_rate`; what was not measured is 0. Compute in F, forward passes of the target on one
    view, per view: `compute_spent` so far, `price` of this step; `budget_left` is a share. Besides the minibatches
    trained so far (`step`) and in this chunk (`chunk_steps`), and `diverged`. A learner adds names by its `shown`; the
    attribute `scalars` holds everything it reported.

    ## Arguments
    ```python
    gym.make("astra_env/AttackStrategy-v0", config="tiny", overrides={"env.chunk_steps": 5}, render_mode="ansi")
    ```

    * `config`: preset (`quickstart`, the default, and `supervised_quickstart` need no download; `cifar10`, ...), YAML
      path or mapping.
    * `overrides`: values by dotted key.
    * `render_mode`: `ansi` (one line per step) or `rgb_array` (figure of the training so far).

    Beyond Gymnasium's interface: `state_dict()`, `load_state_dict()`, `save(path)`, `load(path)`, `fork()`
    (`astra_env.fork(env)` goes through wrappers). PyTorch modes of the caller (`no_grad`, `inference_mode`, `autocast`,
    default dtype and device, deterministic algorithms, precision of products) change nothing; `run.threads` fixes the
    number of CPU threads.

    ## Version history
    * v0: Initial version.
    """

    OWN = (*TrainingEnv.OWN, "_summary")
    metadata: ClassVar[dict[str, Any]] = {"render_modes": list(RENDER_MODES), "render_fps": 10}  # type: ignore[misc]

    @at_the_door
    def __init__(
        self,
        config: str | Mapping[str, Any] = "quickstart",
        overrides: Mapping[str, Any] | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(config, overrides)
        self.render_mode = render_mode
        low, high = np.array(list(BOUNDS.values()), dtype=np.float32).T
        self.observation_space = spaces.Box(low, high, dtype=np.float32)
        self.action_space = spaces.MultiDiscrete(list(self.space.sizes))  # type: ignore[assignment]
        self._recorder = Recorder(render_mode, self.space)
        self._summary = self._fresh_summary()

    @at_the_door
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode by the rules above; raises InputError for an unknown option."""
        first = seed is None and self._learner is None and self.seeded
        gym.Env.reset(self, seed=self.config.seed if first else seed)
        self._begin(seed, options)
        self._summary = self._fresh_summary()
        self._recorder.clear()
        self.price = 0.0
        return self.observation(), self._information({"learning_rate": self.learner.learning_rate})

    @at_the_door
    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Train on the next chunk of minibatches under one attack.

        Raises:
            InputError: for an action that is not three grid indices.
            ResetNeeded: when the episode is over.
        """
        self._require_running()
        action = np.asarray(action)
        if action.shape != (3,):
            raise InputError(f"action: expected 3 integers (epsilon, steps, step size), got shape {action.shape}")
        strategy, spent = self.space.decode(action, device=self.learner.device), self.learner.compute_spent
        history: list[dict[str, float]] = []
        error: Diverged | None = None
        while len(history) < self.config.env.chunk_steps and not self.over and error is None:
            try:
                history.append(self._train(strategy)[1])
                self._summary.smooth(history[-1])
                self.over = self.learner.finished
            except Diverged as diverged:
                error = diverged
        self.price = self.learner.compute_spent - spent
        return self._outcome(action, history, error)

    @at_the_door
    def observation(self) -> np.ndarray:
        """Return the present observation: float32 (16,)."""
        learner = self.learner
        self._summary.show_schedule(learner.progress, learner.learning_rate)
        return self._summary.vector()

    @at_the_door
    def render(self) -> Any:
        """Return a line of text (``ansi``), a uint8 frame (H, W, 3) (``rgb_array``), or None without a mode."""
        return self._recorder.render()

    def _outcome(
        self, action: np.ndarray, history: list[dict[str, float]], error: Diverged | None
    ) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        means = mean_of(history) if history else {}
        if history and self.learner.progress_reward:  # what single minibatches added adds up
            means["reward"] = sum(entry["reward"] for entry in history)
        reward = means.get("reward", 0.0)
        if history:
            self._summary.update(means, action, self.learner.loss_scales)
            self._recorder.record(self.learner.total_steps, {**means, "step": self.learner.step_count}, action[None])
        if error is not None:
            self.over = self.diverged = True
            self.error = str(error)
            reward = self.config.env.divergence_penalty
        self.scalars = means
        return self.observation(), float(reward), self.over, False, self._information(means, len(history))

    def _information(self, scalars: dict[str, float], chunk_steps: int = 0) -> dict[str, Any]:
        learner = self.learner
        return information(
            {**scalars, **self._spending()},
            learner.shown,
            step=learner.step_count,
            chunk_steps=chunk_steps,
            diverged=self.diverged,
        )

    def _longest_episode(self) -> int | None:
        minibatches = super()._longest_episode()
        return None if minibatches is None else -(-minibatches // self.config.env.chunk_steps)

    def _fresh_summary(self) -> TrainingSummary:
        return TrainingSummary(self.space.sizes, self.config.learner.learning_rate)

    def _episode_state(self) -> dict[str, Any]:
        return self._summary.state_dict()

    def _load_episode_state(self, state: dict[str, Any]) -> None:
        self._summary.load_state_dict(state)
