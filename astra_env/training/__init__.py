"""The loop around a learner and a policy, and what keeps it safe."""
