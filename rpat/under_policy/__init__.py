"""Supervised training as a learner of the environments: a policy chooses every image's attack."""
