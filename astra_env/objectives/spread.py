"""The encoder of an objective whose batch is spread over ranks, or worked off in chunks."""

from torch import Tensor

from astra_env.config.schema import LearnerConfig
from astra_env.distributed import SharedGradients, World
from astra_env.distributed.gradients import CachedFeatures
from astra_env.errors import ConfigError, InputError
from astra_env.objectives.base import Batch, Encoder, Losses, TrainingObjective


def require_spreadable(objective: TrainingObjective, options: LearnerConfig, world: World, images: int) -> None:
    """Raise ConfigError for a batch that cannot be split as wished, or an objective that cannot be spread or cached.

    Args:
        objective: what is trained.
        options: batch size and chunks.
        world: the ranks.
        images: in the data set; what they leave for the last batch of an epoch must be splittable too, when it is kept.
    """
    world.share(options.batch_size)
    rest = 0 if options.drop_last else images % options.batch_size
    if rest == 1:
        raise ConfigError(
            f"learner.drop_last: {images} images leave a last batch of one, which has no negatives; set it to true or "
            "change learner.batch_size"
        )
    own = world.share(rest, "images of the last batch (learner.drop_last)") if rest else world.share(options.batch_size)
    smallest = own.stop - own.start
    if options.accumulate > smallest:
        raise ConfigError(
            f"learner.accumulate: expected at most the {smallest} images of a process, got {options.accumulate}"
        )
    if not objective.spread and (options.accumulate > 1 or not world.alone):
        raise ConfigError(
            f"learner.objective: {options.objective!r} needs more of the network than features of its views, so it "
            "runs in one process and with learner.accumulate 1; astra, acl and simclr can be spread"
        )


def differentiate(
    objective: TrainingObjective, own: Encoder, batch: Batch, adversarial: Tensor, gradients: SharedGradients
) -> Losses:
    """Return the losses of the whole batch and add their gradients to the parameters', alike on every rank.

    Args:
        objective: the loss.
        own: encodes this rank's views.
        batch: this rank's views.
        adversarial: likewise.
        gradients: of the parameters; knows the ranks.
    """
    world, chunks = gradients.world, objective.setting.config.learner.accumulate
    cache = CachedFeatures(own, own.network, chunks) if chunks > 1 else None
    encode = own if world.alone and cache is None else SpreadEncoder(own, world, cache)
    found: list[Losses] = []

    def compute() -> Tensor:
        found.append(objective(encode, batch, adversarial))
        return found[0].total

    if cache is not None:
        cache.backward(compute, gradients)
    else:
        gradients.backward(compute, joint=True)
    return found[0]


class SpreadEncoder(Encoder):
    """Encodes a rank's own views and returns the features of all ranks', so that a loss sees the whole batch.

    Args:
        own: encodes this rank's views.
        world: the ranks.
        cache: through which own views are encoded in chunks; None for all at once.
    """

    def __init__(self, own: Encoder, world: World, cache: CachedFeatures | None = None) -> None:
        super().__init__(own.network, own.autocast)
        self._own = own if cache is None else cache.encode
        self._world = world

    def __call__(self, views: Tensor, branch: str) -> Tensor:
        """Own views (N / W, 3, H, W) in [0, 1] -> projected features (N, D) of all ranks, in their order."""
        return self._world.join(self._own(views, branch))

    def embed(self, views: Tensor, branch: str) -> Tensor:
        """Raise InputError: an objective that needs embeddings is not spread."""
        raise InputError("learner.objective: it says it can be spread, yet asks for embeddings; see TrainingObjective")

    def project(self, embedding: Tensor, branch: str) -> Tensor:
        """Raise InputError: an objective that needs embeddings is not spread."""
        raise InputError("learner.objective: it says it can be spread, yet asks for projections; see TrainingObjective")
