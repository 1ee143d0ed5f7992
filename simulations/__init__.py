"""Whole federations on one machine: the same server loop, relay and agents as in a deployment."""
