"""AutoAugment of whole batches, drawn from an explicit generator."""

import torch
from torch import Tensor
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

Decision = tuple[int, tuple[float, float], tuple[int, int]]


class BatchedAutoAugment:
    """torchvision's CIFAR-10 policy (Cubuk et al. 2019), a decision of its own for every image.

    Images that drew the same operations are changed together; torch's global random state is not used.
    """

    def __init__(self) -> None:
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
