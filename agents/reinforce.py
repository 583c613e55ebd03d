"""The paper's strategy network and REINFORCE, as published and improved.

Per view, a ResNet gives three categorical distributions (epsilon, steps, step size); actions are sampled from them
and the log-probabilities of good actions are raised. Two presets:

- ``paper`` (ASTrA 2025): CIFAR ResNet-18 with BatchNorm, updated before steps 10, 20, ... of the target: actions are
  sampled from the train-mode network that is then differentiated, their attack is rewarded, and the target trains under
  actions drawn anew, in eval mode, from the updated network. The loss is summed over views without a baseline, the
  gradient norm clipped to 1, LARS at .1 with warm-up and cosine.
- ``improved``: GroupNorm, heads that start at zero (uniform choices), an update from every step's own outcome,
  leave-one-out baseline and normalised advantage over the views, entropy bonus, Adam. Give it a reward with per-view
  credit.

Both differentiate the distribution that the actions were sampled from. BatchNorm makes it another one in training than
in evaluation mode, so a network with BatchNorm rehearses: it samples in training mode, on the side, what it learns
from. GroupNorm's is the same in both modes, so the actions that the target trains under serve.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from agents.base import POLICIES, batch_size
from astra_env.errors import ConfigError, InputError
from astra_env.models import strategy_resnet18
from astra_env.optim import LARS, warmup_cosine
from astra_env.randomness import derive_seed, generator
from astra_env.storage.state import load_or_undo, load_parts, require_state
from astra_env.strategy import StrategySpace

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "width": 64,
        "norm": "batch",
        "zero_init_heads": False,
        "optimizer": "lars",
        "learning_rate": 0.1,
        "update_every": 10,
        "baseline": "none",
        "entropy": 0.0,
        "max_grad_norm": 1.0,
    },
    "improved": {
        "width": 16,
        "norm": "group",
        "zero_init_heads": True,
        "optimizer": "adam",
        "learning_rate": 3e-3,
        "update_every": 1,
        "baseline": "leave_one_out",
        "entropy": 0.01,
        "max_grad_norm": 1.0,
    },
}


def log_probabilities(logits: Sequence[Tensor], actions: Tensor) -> Tensor:
    """Return log pi of each row's three choices together; logits (N, K) per head, actions (N, 3) -> (N,)."""
    columns = actions.unbind(1)
    picked = [head.log_softmax(1).gather(1, column[:, None]) for head, column in zip(logits, columns, strict=True)]
    return torch.cat(picked, dim=1).sum(1)


def reinforce_loss(logits: Sequence[Tensor], actions: Tensor, reward: Tensor | float) -> Tensor:
    """The official policy loss: minus the sum over views of (sum over heads log pi) times the reward.

    Args:
        logits: one (N, K) tensor per head: epsilon, steps, step size.
        actions: (N, 3) int64 grid indices.
        reward: one scalar for all views, or (N,).

    Returns:
        A scalar.
    """
    return -(log_probabilities(logits, actions) * reward).sum()


def entropy(logits: Sequence[Tensor]) -> Tensor:
    """Return the mean entropy of the joint choice in nats; logits (N, K) per head -> scalar."""
    per_head = [-(head.softmax(1) * head.log_softmax(1)).sum(1).mean() for head in logits]
    return torch.stack(per_head).sum()


@POLICIES.register("reinforce")
class Reinforce:
    """A strategy network trained by REINFORCE; every view gets its own attack.

    Args:
        preset: "paper" or "improved"; every other argument overrides one of its values.
        width: channels of the network's first stage.
        blocks: residual blocks of its stages.
        norm: "batch", which learns from attacks rehearsed before the step, or "group", which learns from its own.
        zero_init_heads: start from uniform choices.
        optimizer: "lars" or "adam".
        learning_rate: its learning rate (LARS: after warm-up).
        update_every: policy updates happen at steps n, 2n, ... of the training.
        baseline: "none" (the raw reward, summed over views) or "leave_one_out" (advantage over the other views of the
            batch, normalised; a shared reward is compared with its own running mean instead).
        entropy: weight of the entropy bonus.
        max_grad_norm: gradients are clipped to this norm.
        space, device, seed, total_steps, warmup_steps: the run it acts in.
    """

    accepts_tensors = True
    samples_from_grid = True

    def __init__(
        self,
        preset: str = "improved",
        *,
        blocks: Sequence[int] = (2, 2, 2, 2),
        space: StrategySpace | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
        total_steps: int = 1000,
        warmup_steps: int = 0,
        **overrides: Any,
    ) -> None:
        settings = _settings(preset, overrides)
        self.space = space if space is not None else StrategySpace()
        self.device = torch.device(device)
        self.settings = settings
        self.network = strategy_resnet18(
            grid_sizes=self.space.sizes,
            width=settings["width"],
            blocks=tuple(blocks),
            zero_init_heads=settings["zero_init_heads"],
            norm=settings["norm"],
            generator=generator(seed, "strategy network"),
        ).to(self.device)
        make_optimizer = LARS if settings["optimizer"] == "lars" else torch.optim.Adam
        self.optimizer = make_optimizer(self.network.parameters(), lr=settings["learning_rate"])
        self.generator = torch.Generator(device=self.device).manual_seed(derive_seed(seed, "actions"))
        self.total_updates = max(1, total_steps // settings["update_every"])
        self.warmup_updates = warmup_steps // settings["update_every"]
        self.steps = 0
        self.updates = 0
        self.running_reward = torch.zeros((), device=self.device)
        self._rehearsed: tuple[tuple[Tensor, ...], Tensor] | None = None
        self._rehearsed_for = 0

    @property
    def rehearses(self) -> bool:
        """Whether it learns from attacks tried before the step, not from the step's own."""
        return bool(self.settings["norm"] == "batch")

    def rehearse(self, observation: Any) -> Any:
        """Return attacks to try before the next step, whose reward :meth:`learn_from` is to be given; None for none.

        Args:
            observation: uint8 views (N, 3, H, W), as given to :meth:`predict`.
        """
        if not self.rehearses or (self.steps + 1) % self.settings["update_every"]:
            return None
        self.network.train()
        logits = self.network(self._views(observation))
        actions = torch.stack([self._sample(head.detach()) for head in logits], dim=1)
        self._rehearsed = logits, actions
        return actions if isinstance(observation, Tensor) else actions.cpu().numpy()

    @torch.no_grad()
    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """Choose attacks for uint8 views (N, 3, H, W) or one view (3, H, W).

        Returns int64 indices (N, 3) or (3,), as a tensor for tensors and as an array for arrays; sampled, or the most
        likely ones when ``deterministic``.
        """
        views = self._views(observation)
        self.network.eval()
        logits = self.network(views)
        columns = [head.argmax(1) if deterministic else self._sample(head) for head in logits]
        actions = torch.stack(columns, dim=1)
        actions = actions if batch_size(observation) is not None else actions[0]
        return (actions if isinstance(observation, Tensor) else actions.cpu().numpy()), state

    def _sample(self, logits: Tensor) -> Tensor:
        """Draw one index per row, as ``torch.multinomial`` does with the same generator, but never wait for the device.

        (It checks the probabilities on the host first.)
        """
        probabilities = logits.softmax(1)
        return (probabilities / torch.empty_like(probabilities).exponential_(generator=self.generator)).argmax(1)

    def learn_from(self, observation: Any, actions: Any, reward: Any) -> dict[str, Tensor]:
        """Take the outcome of a rehearsal or of a step; every ``update_every`` steps, update the network.

        Args:
            observation: uint8 views (N, 3, H, W), as given to :meth:`predict`.
            actions: (N, 3), as returned by it or by :meth:`rehearse`.
            reward: a scalar, or (N,); a reward that is not finite (a diverged learner's) counts as zero.

        Returns:
            What to log: loss, entropy and gradient norm of an update; empty between updates.
        """
        if self._rehearsed is not None:
            logits, chosen = self._rehearsed
            self._rehearsed, self._rehearsed_for = None, self.steps + 1
            return self._update(logits, chosen, reward)
        self.steps += 1
        if self.steps % self.settings["update_every"]:
            return {}
        if self.rehearses:
            self._require_rehearsal()
            return {}
        self.network.train()
        logits = self.network(self._views(observation))
        return self._update(logits, torch.as_tensor(actions, device=self.device, dtype=torch.int64), reward)

    def _require_rehearsal(self) -> None:
        if self._rehearsed_for != self.steps:
            raise InputError(
                "reinforce: with norm 'batch' it learns from attacks tried before the step, and none was: call "
                "rehearse(observation) before predict and give learn_from their reward first, as astra_env.envs.play "
                "and train_astra.py do, or choose norm 'group'"
            )

    def _update(self, logits: Sequence[Tensor], actions: Tensor, reward: Any) -> dict[str, Tensor]:
        reward = torch.as_tensor(reward, device=self.device, dtype=torch.float32).nan_to_num(0.0, 0.0, 0.0)
        loss = self._loss(logits, actions, reward)
        self._set_learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings["max_grad_norm"])
        self.optimizer.step()
        self.updates += 1
        return {"loss": loss.detach(), "entropy": entropy([head.detach() for head in logits]), "grad_norm": norm}

    def state_dict(self) -> dict[str, Any]:
        """Return network, optimiser, generator and counters."""
        return {
            "strategy": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state().cpu(),
            "steps": self.steps,
            "updates": self.updates,
            "running_reward": self.running_reward.cpu(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where ``state`` was taken.

        Raises CheckpointError, and changes nothing, when it is damaged or another policy's.
        """
        own = self.state_dict()
        owners = {"strategy": self.network, "optimizer": self.optimizer, "generator": self.generator}

        def take(state: dict[str, Any]) -> None:
            load_parts(owners, state)
            self.steps, self.updates = state["steps"], state["updates"]
            self.running_reward = state["running_reward"].to(self.device)

        require_state(state, {**own, **owners}, "policy")
        load_or_undo(state, own, take, "this policy")

    def _loss(self, logits: Sequence[Tensor], actions: Tensor, reward: Tensor) -> Tensor:
        if self.settings["baseline"] == "none":
            return reinforce_loss(logits, actions, reward) - self.settings["entropy"] * entropy(logits)
        loss = reinforce_loss(logits, actions, self._advantage(reward)) / len(actions)
        return loss - self.settings["entropy"] * entropy(logits)

    def _advantage(self, reward: Tensor) -> Tensor:
        if reward.dim() == 0:
            baseline = self.running_reward
            self.running_reward = baseline + (reward - baseline) * (1.0 if self.updates == 0 else 0.1)
            return reward - baseline if self.updates else torch.zeros_like(reward)
        others = (reward.sum() - reward) / max(1, len(reward) - 1)
        advantage = reward - others
        return advantage / advantage.std().clamp_min(1e-8)

    def _set_learning_rate(self) -> None:
        if self.settings["optimizer"] != "lars":
            return
        rate = self.settings["learning_rate"]
        factor = warmup_cosine(self.updates, self.total_updates, self.warmup_updates, 1e-6 / rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * factor

    def _views(self, observation: Any) -> Tensor:
        views = torch.as_tensor(observation, device=self.device)
        if views.dtype != torch.uint8 or views.dim() not in (3, 4) or views.shape[-3] != 3:
            raise InputError(
                f"reinforce: expected uint8 views (N, 3, H, W), got {views.dtype} {tuple(views.shape)}; "
                "it acts in InstanceAttackStrategy-v0 and in train_astra.py"
            )
        return (views if views.dim() == 4 else views[None]).contiguous().float() / 255


def _settings(preset: str, overrides: dict[str, Any]) -> dict[str, Any]:
    if preset not in PRESETS:
        raise ConfigError(f"policy_args.preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
    settings = PRESETS[preset]
    for name in overrides:
        if name not in settings:
            raise ConfigError(f"policy_args.{name}: unknown argument; known: preset, blocks, {', '.join(settings)}")
    settings = {**settings, **overrides}
    if settings["optimizer"] not in ("lars", "adam"):
        raise ConfigError(f"policy_args.optimizer: expected 'lars' or 'adam', got {settings['optimizer']!r}")
    if settings["baseline"] not in ("none", "leave_one_out"):
        raise ConfigError(f"policy_args.baseline: expected 'none' or 'leave_one_out', got {settings['baseline']!r}")
    if settings["update_every"] < 1:
        raise ConfigError(f"policy_args.update_every: expected an integer >= 1, got {settings['update_every']}")
    return settings
