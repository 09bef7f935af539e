"""Fits of scaling laws to finished runs, with confidence and prediction intervals."""
