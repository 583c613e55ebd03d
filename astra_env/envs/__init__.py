"""The environments: choosing attack strategies, by Gymnasium's rules."""

from astra_env.envs.attack_strategy import AttackStrategyEnv
from astra_env.envs.episode import EpisodeResult, play
from astra_env.envs.forking import fork
from astra_env.envs.instance_attack_strategy import InstanceAttackStrategyVectorEnv
from astra_env.envs.wrappers import BoxStrategy, DiscreteStrategy

__all__ = [
    "AttackStrategyEnv",
    "BoxStrategy",
    "DiscreteStrategy",
    "EpisodeResult",
    "InstanceAttackStrategyVectorEnv",
    "fork",
    "play",
]
