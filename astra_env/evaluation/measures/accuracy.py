"""A count of right answers and what it says about the true accuracy."""

from dataclasses import dataclass
from math import sqrt
from typing import Any

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True)
class Accuracy:
    """Right answers out of a number of images.

    Attributes:
        correct: number of images classified right.
        total: number of images.
    """

    correct: int
    total: int

    @property
    def value(self) -> float:
        """The accuracy, 0 to 1."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval (Wilson 1927), which stays within 0 and 1."""
        squared = Z_95**2
        centre = (self.correct + squared / 2) / (self.total + squared)
        spread = self.value * (1 - self.value) / self.total + squared / (4 * self.total**2)
        half = Z_95 * sqrt(spread) / (1 + squared / self.total)
        return max(0.0, centre - half), min(1.0, centre + half)

    def as_dict(self) -> dict[str, Any]:
        """Return counts, value and interval as plain values for JSON."""
        return {"correct": self.correct, "total": self.total, "accuracy": self.value, "interval": list(self.interval)}

    def __str__(self) -> str:
        return f"{100 * self.value:.2f} %"
