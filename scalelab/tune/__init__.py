"""Learning-rate and batch tuning, and the power laws of its results."""
