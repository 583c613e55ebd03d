"""Puts the environments into Gymnasium's registry; strings only, so that nothing heavy is imported for it."""

import gymnasium as gym

ENVIRONMENTS: dict[str, dict[str, str]] = {
    "astra_env/AttackStrategy-v0": {
        "entry_point": "astra_env.envs.attack_strategy:AttackStrategyEnv",
    },
    "astra_env/InstanceAttackStrategy-v0": {
        "entry_point": "astra_env.envs.instance_attack_strategy:single_environment",
        "vector_entry_point": "astra_env.envs.instance_attack_strategy:InstanceAttackStrategyVectorEnv",
    },
}

MODELS: dict[str, dict[str, str]] = {
    "astra_env/AttackStrategyToy-v0": {
        "entry_point": "astra_env.envs.toy:AttackStrategyToyEnv",
    },
}
"""Models of a training, without a network and so without a configuration."""


def register_envs() -> None:
    """Register every environment of this package that is not registered yet; ``import astra_env`` does it."""
    for name, entry_points in {**ENVIRONMENTS, **MODELS}.items():
        if name not in gym.registry:
            gym.register(id=name, **entry_points)  # type: ignore[arg-type]
