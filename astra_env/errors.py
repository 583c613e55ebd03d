"""The errors a user can meet: one line that names the field, the value and the remedy."""


class AstraError(Exception):
    """Base of every error this package raises on purpose; command lines print it in one line and exit with 2."""

    def __str__(self) -> str:
        """Return the message in one printable line, whatever the name or value in it holds."""
        return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in super().__str__())


class InputError(AstraError, ValueError):
    """A value the user gave cannot be used: ``field: expected ..., got ...; remedy``."""


class ConfigError(InputError):
    """A configuration key or value that cannot be used."""


class DataError(InputError):
    """A data set that is missing, damaged or unsuitable; the message names the file or folder."""


class CheckpointError(InputError):
    """A checkpoint that is damaged, hostile or belongs to something else."""


class KeysDiffer(CheckpointError):
    """A checkpoint whose keys are not a network's.

    Attributes:
        missing: every key that the network has and the checkpoint lacks.
        unexpected: every key that only the checkpoint has.
        wrong_shape: every shared key with its two shapes, in words.
    """

    def __init__(self, message: str, *, missing: list[str], unexpected: list[str], wrong_shape: list[str]) -> None:
        super().__init__(message)
        self.missing, self.unexpected, self.wrong_shape = missing, unexpected, wrong_shape


class RunDirectoryError(InputError):
    """A run directory that cannot be written or already belongs to another run."""


class Diverged(AstraError, ArithmeticError):
    """Training produced a non-finite loss or gradient; the learner's state is the one before the failed update."""
