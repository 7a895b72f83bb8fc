"""Algorithm 1: objectives, rollouts and the training loop."""
