"""The networks: ASTrA's target and strategy networks, supervised classifiers, official checkpoints."""

from astra_env.models.interop import load_official
from astra_env.models.layers import BRANCHES, IMAGENET_MEAN, IMAGENET_STD, NORMALIZATIONS
from astra_env.models.networks import NETWORKS
from astra_env.models.own_backbone import BackboneTarget
from astra_env.models.preact_resnet import PreActResNet, preact_resnet18
from astra_env.models.resnet import ResNet, bottleneck_resnet26, resnet18
from astra_env.models.strategy_network import StrategyNetwork, strategy_resnet18
from astra_env.models.target import TargetNetwork, target_resnet18
from astra_env.models.vit import TransformerTarget, target_vit
from astra_env.models.wide_resnet import WideResNet, wide_resnet

Target = TargetNetwork | TransformerTarget | BackboneTarget
"""What is trained without labels: has ``embed``, ``project``, ``branches`` and ``embed_dim``."""

__all__ = [
    "BRANCHES",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "NETWORKS",
    "NORMALIZATIONS",
    "BackboneTarget",
    "PreActResNet",
    "ResNet",
    "StrategyNetwork",
    "Target",
    "TargetNetwork",
    "TransformerTarget",
    "WideResNet",
    "bottleneck_resnet26",
    "load_official",
    "preact_resnet18",
    "resnet18",
    "strategy_resnet18",
    "target_resnet18",
    "target_vit",
    "wide_resnet",
]
