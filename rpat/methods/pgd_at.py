"""PGD adversarial training (Madry et al. 2018)."""

from rpat.methods.base import METHODS, Method


@METHODS.register("pgd_at")
class PGDAT(Method):
    """Cross-entropy of the adversarial images: what every method starts from.

    In l-2 the released benchmarks (advertorch) start from a uniformly random image, scaled back into the ball, and
    clip to the box before the ball; ours start uniform in the ball and clip to the box last. The adversarial loss
    differs by .4 %, the length of the perturbation by .01 % (128 CIFAR-10 images at 16x16, 128/255, 10 steps).
    """
