"""The augmentation of a supervised run: crop and flip, AutoAugment, Cutout, CutMix, in this order."""

from typing import Literal

import torch
from torch import Tensor

from astra_env.augment import cutmix, cutout, random_crop_flip
from rpat.config import AugmentConfig

Decision = tuple[int, tuple[float, float], tuple[int, int]]


class Augmentation:
    """Turns uint8 images and labels into the rows of a training step.

    Args:
        config: resolved settings.
        epochs: length of the run, for the schedule of AutoAugment.
        views: augmented views of every image.
        num_classes: number of classes, for CutMix.
        generator: CPU generator, the only source of randomness.
    """

    def __init__(
        self, config: AugmentConfig, *, epochs: int, views: int, num_classes: int, generator: torch.Generator
    ) -> None:
        self.config = config
        self.epochs = epochs
        self.views = views
        self.num_classes = num_classes
        self.generator = generator

    def __call__(self, images: Tensor, labels: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Vary a batch.

        Args:
            images: uint8 (B, 3, H, W).
            labels: int64 (B,).
            epoch: 0-based.

        Returns:
            float32 (V*B, 3, H, W) in [0, 1], all first views before all second ones, and labels (V*B,); with CutMix
            probabilities (V*B, C).
        """
        batches = [self._one_view(images, labels, epoch) for _ in range(self.views)]
        return torch.cat([views for views, _ in batches]), torch.cat([targets for _, targets in batches])

    def uses_autoaugment(self, epoch: int) -> bool:
        """Whether AutoAugment is on in this epoch: in ``second_half`` of 200 epochs from epoch 100, counted from 0."""
        return self.config.autoaugment == "always" or (
            self.config.autoaugment == "second_half" and 2 * epoch >= self.epochs
        )

    def _one_view(self, images: Tensor, labels: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        config, generator = self.config, self.generator
        mode: Literal["zero", "reflect"] = "reflect" if config.padding_mode == "reflect" else "zero"
        views = random_crop_flip(images, generator, padding=config.padding, padding_mode=mode, flip=config.flip)
        automatic = self.uses_autoaugment(epoch)
        if automatic:
            levels = views.mul(255).round_().to(torch.uint8)
            views = BatchedAutoAugment()(levels, generator).float().div_(255)
        size = config.cutout if config.cutout is not None else automatic * (images.shape[-1] // 2)
        if size:
            views = cutout(views, generator, size)
        if config.cutmix:
            return cutmix(views, labels, generator, config.cutmix_alpha, self.num_classes)
        return views, labels


class BatchedAutoAugment:
    """torchvision's CIFAR-10 policy (Cubuk et al. 2019), a decision of its own for every image.

    Images that drew the same operations are changed together; torch's global random state is not used.
    """

    def __init__(self) -> None:
        from torchvision.transforms import AutoAugment, AutoAugmentPolicy  # slow to import, and few runs need it

        self._policy = AutoAugment(AutoAugmentPolicy.CIFAR10)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Vary uint8 images (N, 3, H, W) on any device; ``generator`` is a CPU generator."""
        result = torch.empty_like(images)
        for decision, rows in self._draw(len(images), generator).items():
            index = torch.tensor(rows, device=images.device)
            # All of the policy's randomness is in get_params; giving its answer makes the policy a function.
            self._policy.get_params = lambda count, drawn=decision: drawn  # type: ignore[method-assign]
            result[index] = self._policy(images[index])
        return result

    def _draw(self, count: int, generator: torch.Generator) -> dict[Decision, list[int]]:
        """Return the rows of every distinct outcome: policy, which of its two operations apply, their signs."""
        policies = self._policy.policies
        chosen = torch.randint(len(policies), (count,), generator=generator).tolist()
        chances = torch.rand(count, 2, generator=generator).tolist()
        signs = torch.randint(2, (count, 2), generator=generator).tolist()
        groups: dict[Decision, list[int]] = {}
        for row, (policy, (first, second), (sign, other)) in enumerate(zip(chosen, chances, signs, strict=True)):
            # 0 always applies the operation and 2 never does, whatever its probability.
            applied = [
                0.0 if chance <= probability else 2.0
                for chance, (_, probability, _) in zip((first, second), policies[policy], strict=True)
            ]
            groups.setdefault((policy, (applied[0], applied[1]), (sign, other)), []).append(row)
        return groups
