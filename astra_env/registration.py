"""Puts the environments into Gymnasium's registry; strings only, so that nothing heavy is imported for it."""

import gymnasium as gym

ENVIRONMENTS: dict[str, dict[str, str]] = {
    "astra_env/AttackStrategy-v0": {
        "entry_point": "astra_env.envs.attack_strategy:AttackStrategyEnv",
    },
    "astra_env/AttackStrategyToy-v0": {
        "entry_point": "astra_env.envs.toy:AttackStrategyToyEnv",
    },
    "astra_env/InstanceAttackStrategy-v0": {
        "entry_point": "astra_env.envs.instance_attack_strategy:single_environment",
        "vector_entry_point": "astra_env.envs.instance_attack_strategy:InstanceAttackStrategyVectorEnv",
    },
}


def register_envs() -> None:
    """Register every environment of this package that is not registered yet; ``import astra_env`` does it."""
    for name, entry_points in ENVIRONMENTS.items():
        if name not in gym.registry:
            gym.register(id=name, **entry_points)  # type: ignore[arg-type]
