"""Tuning of learning rate and batch, and power laws of the optimum."""
