"""How often a model may see the same text.

References
----------
Muennighoff et al. 2023, arXiv:2305.16264 (up to 4 epochs are almost as good as new text).
"""

MAX_EPOCHS = 4.0
"""Largest number of epochs over a text or a source without --allow-repeats."""
