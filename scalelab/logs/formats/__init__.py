"""Readers of run logs: one file a format; `scalelab.logs.registry` lists them."""
