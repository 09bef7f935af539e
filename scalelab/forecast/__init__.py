"""Forecasts, decisions and adaptive sweeps from fitted laws, with intervals."""
