"""Gymnasium environments in which the attack of an adversarial training run is itself learned."""
__version__ = "0.1.0"
