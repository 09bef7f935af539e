"""Weights in the layouts of the transformers library."""
