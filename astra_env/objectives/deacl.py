"""DeACL: a robust student of a clean contrastive teacher (Zhang et al. 2022)."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from astra_env.attacks import Objective
from astra_env.augment import PaddedCropAugment, SimCLRAugment
from astra_env.errors import ConfigError
from astra_env.models import load_official
from astra_env.objectives.base import OBJECTIVES, Batch, Encoder, Losses, Setting, TrainingObjective
from astra_env.objectives.teacher import TeacherTraining
from astra_env.storage.checkpoint import load_checkpoint

TEACHER_STEPS = 3
"""Length of a teacher's training in trainings of the student: its steps are cheap, and a poor one caps the student."""


@dataclass
class DeACLOptions:
    """``learner.objective_args`` of deacl."""

    teacher: str | None = None
    """Checkpoint of a SimCLR encoder like this run's; by default one is trained before the first step."""
    teacher_steps: int | None = None
    """Steps of that training, none of them attacked; default three times as many as the student's."""
    teacher_learning_rate: float = 5.0
    """LARS learning rate of that training."""
    robust_weight: float = 2.0
    """Weight of the similarity of attacked and clean embeddings."""


@dataclass(frozen=True, eq=False)
class LeaveTeacher:
    """What the attack raises: -cos of every view's embedding and the teacher's of the clean view (2B, D)."""

    teacher: Tensor
    joint: ClassVar[bool] = False

    def __call__(self, outputs: Tensor) -> Tensor:
        """Return the summed negative cosine of embeddings (2B, D)."""
        return -F.cosine_similarity(outputs, self.teacher, dim=1).sum()


@OBJECTIVES.register("deacl")
class DeACL(TrainingObjective):
    """-cos(s(x), t(x)) - 2 cos(s(x'), s(x)) of backbone embeddings; the attack maximises -cos(s(x'), t(x)).

    The teacher t is frozen and travels in the checkpoint. Both views of an image are weak ones: crops of the image
    padded by 4 of 32 pixels and flips, no colours; the authors make one such view of every image, so our step has twice
    as many views as theirs. Everything goes through the adv branch, for DeACL knows a single set of norms. As
    published, clean and attacked views share a pass, and the start of the attack is not clipped to the image box. The
    projection head is not trained. In preset deacl, the standard deviations that inputs are divided by differ from the
    authors' by at most .24 %, and the learning rate by at most .047 of .5, in the first epoch. Rewards are gains of the
    attack's goal.
    """

    clip_start: ClassVar[bool] = False
    clean_branch: ClassVar[str] = "adv"
    Options: ClassVar[type] = DeACLOptions

    def __init__(self, setting: Setting, options: Any) -> None:
        super().__init__(setting, options)
        for name in ("teacher_learning_rate", "robust_weight"):
            if not 0 <= getattr(options, name) < float("inf"):
                value = getattr(options, name)
                raise ConfigError(f"learner.objective_args.{name}: expected a finite number >= 0, got {value}")
        if options.teacher_steps is not None and options.teacher_steps < 1:
            raise ConfigError(
                f"learner.objective_args.teacher_steps: expected an integer >= 1, got {options.teacher_steps}"
            )
        self.teacher = copy.deepcopy(setting.target)
        self._latest: tuple[Batch, Tensor] | None = None
        steps = options.teacher_steps or TEACHER_STEPS * setting.total_steps
        if options.teacher is not None:
            load_official(self.teacher, load_checkpoint(options.teacher))
            steps = 0
        self.teaching = TeacherTraining(self.teacher, setting, steps, options.teacher_learning_rate)

    @property
    def left_to_prepare(self) -> int:
        """Steps until the teacher is trained; 0 when it was given."""
        return self.teaching.left

    def prepare(self) -> None:
        """Train the teacher by one step."""
        self.teaching.step()

    def augmentation(self, default: SimCLRAugment, step: int) -> PaddedCropAugment:
        """Return weak views: padded crops, mirrored as ``default`` says, colours untouched."""
        return PaddedCropAugment(default.image_size, flip_probability=default.flip_probability)

    def attack_goal(self, batch: Batch) -> Objective:
        """Return the distance from the teacher's embeddings of the clean views."""
        return LeaveTeacher(self._taught_embeddings(batch))

    def outputs(self, views: Tensor, branch: str) -> Tensor:
        """Views (n, 3, H, W) -> the student's embeddings (n, E)."""
        return self.target.embed(views, branch)

    def __call__(self, encode: Encoder, batch: Batch, adversarial: Tensor) -> Losses:
        """Return the losses of all views and their attacked forms."""
        clean, attacked = encode.embed(torch.cat((batch.views, adversarial)), "adv").chunk(2)
        taught = F.cosine_similarity(clean, self._taught_embeddings(batch), dim=1).mean()
        robust = F.cosine_similarity(attacked, clean, dim=1).mean()
        total = -taught - self.options.robust_weight * robust
        return Losses(total, {"teacher_similarity": taught, "robust_similarity": robust})

    def state_dict(self) -> dict[str, Any]:
        """Return the teacher and how far its training is."""
        return self.teaching.state_dict()

    def state_form(self) -> dict[str, Any]:
        """Return what a state of a teacher looks like, trained or half trained."""
        return self.teaching.state_form()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the teacher, trained or half trained."""
        self.teaching.load_state_dict(state)
        self._latest = None

    def reward_loss(self, batch: Batch) -> Callable[[Tensor, str], Tensor]:
        """Return -cos of the teacher's embeddings and the given ones."""
        taught = self._taught_embeddings(batch)

        def distance(embeddings: Tensor, reduction: str) -> Tensor:
            similarity = F.cosine_similarity(embeddings, taught, dim=1)
            return -similarity if reduction == "none" else -similarity.mean()

        return distance

    @torch.no_grad()
    def _taught_embeddings(self, batch: Batch) -> Tensor:
        if self._latest is None or self._latest[0] is not batch:
            self._latest = batch, self.teacher.embed(batch.views, "clean")
        return self._latest[1]
