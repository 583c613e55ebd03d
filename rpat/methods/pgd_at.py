"""PGD adversarial training (Madry et al. 2018)."""

from rpat.methods.base import Method
from rpat.methods.registry import METHODS


@METHODS.register("pgd_at")
class PGDAT(Method):
    """Cross-entropy of the adversarial images: what every method starts from."""
