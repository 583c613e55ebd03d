"""InstanceAttackStrategy-v0: every view of a minibatch is a sub-environment and gets its own attack."""

from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from astra_env.config.checks import one_of
from astra_env.distributed import ALONE
from astra_env.distributed.start import joined
from astra_env.envs.arrays import Arrays, NumPyArrays, TorchArrays
from astra_env.envs.information import PER_VIEW, information
from astra_env.envs.rendering import RENDER_MODES, Recorder
from astra_env.envs.training import TrainingEnv
from astra_env.errors import ConfigError, Diverged, InputError
from astra_env.learner.make import learner_class
from astra_env.modes import at_the_door
from astra_env.strategy import Attack, AttackStrategy

AUTORESET_MODES = {
    "same_step": AutoresetMode.SAME_STEP, "next_step": AutoresetMode.NEXT_STEP, "disabled": AutoresetMode.DISABLED,
}  # fmt: skip


class InstanceAttackStrategyVectorEnv(TrainingEnv, VectorEnv[Any, Any, Any]):
    """Choose the attack of every single view of an adversarial training.

    ## Description
    The world of ASTrA's strategy network (ICLR 2025), and with `learner.kind: supervised` that of LAS-AT's (CVPR 2022).
    A minibatch of B images gives 2B augmented views in contrastive training, rows 2k and 2k+1 being the two views of
    image k, and B views in supervised training (2B with `consistency`: all first views, then all second ones). Each
    view is a sub-environment: the agent sees it and chooses the attack on it. One `step` trains the network on the
    minibatch under these attacks; the next observation is the next minibatch. All sub-environments share one network,
    so they begin and end together.

    ## Action space
    `MultiDiscrete([13, 12, 5])` per view (batched: int64 `(num_envs, 3)`): indices into the grids `strategy.epsilon`,
    `strategy.steps` and `strategy.step_size` of the configuration; the paper's are (3 ... 15)/255, 3 ... 14 and
    (1 ... 5)/255.

    ## Observation space
    `Box(0, 255, (3, H, W), uint8)` per view (batched: `(num_envs, 3, H, W)`): the clean view, channels first. Views lie
    on the 8-bit grid, so nothing is lost. Every step returns a buffer of its own.

    ## Rewards
    float64 `(num_envs,)`. `learner.reward` decides: `astra` (as published) gives every view the same reward,
    (NT-Xent(adv) - NT-Xent(clean)) / 3 of the whole minibatch; `per_view` gives each view its own share of that;
    `vs_fixed`, `cost_aware`, `constant` and `module:attribute` as in `AttackStrategyEnv`. Supervised: `adv_loss_gain`
    gives each image its own, `look_ahead` all the same (or with `credit: per_view` its own). `shared_reward` tells
    whether the last one was shared. When training diverges every view gets `env.divergence_penalty`.

    ## Starting state
    As in `AttackStrategyEnv`: a seeded or the first `reset` builds a fresh training, a bare `reset()` follows
    `env.reset_mode`, and `options={"checkpoint": path}` starts with the weights of a checkpoint or run directory.

    ## Episode end
    An episode is one training. *Termination*: the budget is used up or training diverged (`info["diverged"]`).
    *Truncation*: after `max_episode_steps` minibatches, if given. The next episode starts as
    `metadata["autoreset_mode"]` says: by itself in the same step (default; the last observation and information are
    then in `info["final_obs"]` and `info["final_info"]`), by itself in the next step, whose actions are ignored, or
    (`disabled`) by `reset()`, also with Gymnasium's `options={"reset_mask": mask}` for all views. Which client needs
    which: docs/clients.md.

    ## Information
    As Gymnasium's own vector environments: arrays `(num_envs,)`, each with a mask `_name`, the same names in `reset()`
    and `step()`. Per view `epsilon`, `steps` and `step_size` of its attack (masked and 0 before there is one); for all
    alike what `AttackStrategyEnv` tells.

    ## Arguments
    ```python
    gym.make_vec("astra_env/InstanceAttackStrategy-v0", num_envs=32, vectorization_mode="vector_entry_point",
                 config="tiny")
    ```

    * `num_envs`: views per minibatch; it sets `learner.batch_size`. Contrastive: even and at least 4, twice the images;
      supervised: at least 2. Default: what the configuration's `learner.batch_size` gives (only when the class is built
      directly: `make_vec` always gives one).
    * `config`, `overrides`: as in `AttackStrategyEnv`.
    * `render_mode`: `ansi` or `rgb_array`; `render()` returns the same line or figure for every sub-environment.
    * `autoreset_mode`: `same_step`, `next_step` or `disabled` (or an `AutoresetMode`); default `env.autoreset_mode`.
    * `array_type`: `numpy`, or `torch`: observations, rewards, ends and information are tensors on the learner's
      device, bit-equal to the arrays, and actions may be; default `env.array_type`. A step then waits for the device
      three times: to check the actions, to learn how many steps each attack has, and for the scalars, which tell
      whether training diverged. The spaces stay Gymnasium's.
    * `max_episode_steps`: truncate after so many minibatches; default never.
    * `distributed`: train one network in the environments of all processes of the process group, each with its own
      `num_envs` views of the minibatch; give all of them the same configuration and seeds, and step them together.

    Beyond Gymnasium's interface: `state_dict()`, `load_state_dict()`, `save(path)`, `load(path)`, `fork()`, and
    `try_attack(actions)`: the reward that they would have, without training.

    ## Version history
    * v0: Initial version.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": list(RENDER_MODES),
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    @at_the_door
    def __init__(
        self,
        num_envs: int | None = None,
        config: str | Mapping[str, Any] = "quickstart",
        overrides: Mapping[str, Any] | None = None,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode | None = None,
        max_episode_steps: int | None = None,
        distributed: bool = False,
        array_type: str | None = None,
    ) -> None:
        self.world = joined() if distributed else ALONE
        super().__init__(config, overrides)
        per_image = learner_class(self.config.learner.kind).views_per_image(self.config)
        if num_envs is not None:
            self.config.learner.batch_size = _images(num_envs, per_image) * self.world.size
        if not self.config.learner.drop_last:
            raise ConfigError(
                "learner.drop_last: every minibatch needs num_envs views here, so the last, incomplete one of an epoch "
                "cannot be kept; set it to true"
            )
        kind = self.config.env.array_type if array_type is None else array_type
        one_of("array_type", kind, ("numpy", "torch"))
        torch_native = kind == "torch"
        device = self.world.resolve(self.config.device)
        self.arrays: Arrays = TorchArrays(device) if torch_native else NumPyArrays()
        own = self.world.share(self.config.learner.batch_size)
        self.num_envs = per_image * (own.stop - own.start)
        self.render_mode = render_mode
        self.autoreset_mode = _autoreset_mode(autoreset_mode or self.config.env.autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}  # type: ignore[misc]
        self.max_episode_steps = max_episode_steps
        side = self.image_size
        self.single_observation_space = spaces.Box(0, 255, (3, side, side), np.uint8)
        self.single_action_space = spaces.MultiDiscrete(list(self.space.sizes))
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.shared_reward = False
        self._elapsed = 0
        self._recorder = Recorder(render_mode, self.space)

    @at_the_door
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode by the rules above; raises InputError for an unknown option or a partial reset."""
        _require_whole((options or {}).get("reset_mask"), self.num_envs)
        first = seed is None and self._learner is None and self.seeded
        VectorEnv.reset(self, seed=self.config.seed if first else seed)
        self._begin(seed, options)
        self._elapsed = 0
        self._recorder.clear()
        return self.observation(), self._information({"learning_rate": self.learner.learning_rate})

    @at_the_door
    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Train on the minibatch that was observed, every view under its own attack.

        Raises:
            InputError: for actions that are not three grid indices per view.
            ResetNeeded: before the first reset, and after an episode's end when autoreset is disabled.
        """
        if self.over and self._learner is not None and self.autoreset_mode is AutoresetMode.NEXT_STEP:
            observation, info = self.reset()
            return observation, self._full(0.0), self._full(False), self._full(False), info
        self._require_running()
        rewards, info = self._advance(self.arrays.actions(actions, self.num_envs))
        terminated = self.diverged or self.learner.finished
        truncated = not terminated and self.max_episode_steps is not None and self._elapsed >= self.max_episode_steps
        self.over = terminated or truncated
        if self.over and self.autoreset_mode is AutoresetMode.SAME_STEP:
            observation, info = self._next_episode(info)
        else:
            observation = self.observation()
        return observation, rewards, self._full(terminated), self._full(truncated), info

    @at_the_door
    def try_attack(self, actions: Any) -> Any:
        """Return the reward that ``actions`` would have, without training: (num_envs,), or () for a shared one."""
        self._require_running()
        everyone = self.world.gather(self.arrays.actions(actions, self.num_envs))
        reward = self.learner.try_attack(self.space.decode(everyone, device=self.learner.device))
        return self.arrays.give((reward if reward.dim() == 0 else self.world.own(reward)).double())

    @at_the_door
    def observation(self) -> Any:
        """Return the views of the next minibatch: uint8 (num_envs, 3, H, W)."""
        return self.arrays.give(self.learner.own_observation())

    @at_the_door
    def render(self) -> tuple[Any, ...] | None:
        """Return the line of text or the uint8 frame (H, W, 3) of the training, once per sub-environment."""
        return None if self.render_mode is None else (self._recorder.render(),) * self.num_envs

    def _advance(self, actions: Tensor) -> tuple[Any, dict[str, Any]]:
        """Train on one minibatch; returns its rewards (num_envs,) and information."""
        strategy = self.space.decode(self.world.gather(actions), device=self.learner.device)
        spent = self.learner.compute_spent
        try:
            report, scalars = self._train(strategy)
        except Diverged as error:
            self.diverged, self.error = True, str(error)
            return self._full(float(self.config.env.divergence_penalty)), self._information({})
        self._elapsed += 1
        self.price = self.learner.compute_spent - spent
        self.shared_reward = report.reward.dim() == 0
        reward = report.reward if self.shared_reward else self.world.own(report.reward)
        if self._recorder.mode is not None:
            seen = {**scalars, "step": self.learner.step_count}
            self._recorder.record(self.learner.total_steps, seen, actions.cpu().numpy())
        info = self._information(scalars, 1, strategy)
        return self.arrays.give(reward.double().expand(self.num_envs).clone()), info

    def _next_episode(self, info: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Start the next episode and file the end of this one under final_obs and final_info."""
        final = self.arrays.final(self.observation())
        observation, fresh = self.reset()
        ended = {"final_obs": final, "_final_obs": self._full(True)}
        return observation, {**fresh, **ended, "final_info": info, "_final_info": self._full(True)}

    def _information(
        self, scalars: dict[str, float], chunk_steps: int = 0, strategy: AttackStrategy | None = None
    ) -> dict[str, Any]:
        """Return information in the form of Gymnasium's vector environments, the attack of each view included."""
        learner = self.learner
        told = information(
            {**scalars, **self._spending()},
            learner.shown,
            step=learner.step_count,
            chunk_steps=chunk_steps,
            diverged=self.diverged,
        )
        attacks = Attack(0.0, 0.0, 0).strategy(self.num_envs, learner.device)
        if strategy is not None:
            attacks = self.world.own(strategy)
        info = self.arrays.shared(told, self.num_envs)
        for name in PER_VIEW:
            info[name], info[f"_{name}"] = self.arrays.give(getattr(attacks, name)), self._full(strategy is not None)
        return info

    def _full(self, value: Any) -> Any:
        return self.arrays.full(self.num_envs, value)

    def _longest_episode(self) -> int | None:
        known = [limit for limit in (self.max_episode_steps, super()._longest_episode()) if limit is not None]
        return min(known, default=None)

    def _episode_state(self) -> dict[str, Any]:
        return {"elapsed": self._elapsed}

    def _load_episode_state(self, state: dict[str, Any]) -> None:
        self._elapsed = int(state["elapsed"])


def single_environment(**arguments: Any) -> NoReturn:
    """Explain, to whoever calls ``gym.make``, that views do not come singly; raises InputError."""
    raise InputError(
        "astra_env/InstanceAttackStrategy-v0 is a vector environment, because views are trained in minibatches: use "
        "gym.make_vec('astra_env/InstanceAttackStrategy-v0', num_envs=128, vectorization_mode='vector_entry_point'), "
        "or gym.make('astra_env/AttackStrategy-v0') for one attack on all views"
    )


def _images(num_envs: int, per_image: int) -> int:
    """Return the images per minibatch, at least 2, that give ``num_envs`` views."""
    least = 2 * per_image
    if isinstance(num_envs, bool) or int(num_envs) != num_envs or num_envs < least or num_envs % per_image:
        kinds = {1: f"an integer >= {least}", 2: f"an even integer >= {least} (two views of each image)"}
        expected = kinds.get(per_image, f"a multiple of {per_image}, the views of an image, >= {least}")
        raise ConfigError(f"num_envs: expected {expected}, got {num_envs}")
    return int(num_envs) // per_image


def _require_whole(mask: Any, count: int) -> None:
    """Raise InputError unless a mask of sub-environments to reset is absent or names all of them."""
    if mask is None:
        return
    given = np.asarray(mask.cpu() if isinstance(mask, Tensor) else mask)
    if given.shape != (count,) or given.dtype != np.bool_:
        raise InputError(
            f"options.reset_mask: expected bool of shape ({count},), got {given.dtype} of shape {given.shape}"
        )
    if not given.all():
        raise InputError("options.reset_mask: all views belong to one training, so they can only be reset together")


def _autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    if isinstance(mode, AutoresetMode):
        return mode
    found = {**{entry.value: entry for entry in AutoresetMode}, **AUTORESET_MODES}.get(mode)
    if found is None:
        raise ConfigError(f"autoreset_mode: expected one of {', '.join(AUTORESET_MODES)}, got {mode!r}")
    return found
