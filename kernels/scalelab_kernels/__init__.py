"""Fused operations of the trainer, each beside a plain reference.

`scalelab_kernels.reference` is plain torch and runs everywhere. The Triton operations of the same
names live one file an operation and are loaded by `scalelab_kernels.operations.get_operations`,
which takes the choice as a word: nothing falls back by itself. Importing this package imports
neither torch nor Triton.
"""
