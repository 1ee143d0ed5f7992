"""Experiments that attack the real training path, and what they prove about its privacy."""
