"""Continual learning on one machine: one learner, or a federation, that meets a stream of experiences."""
