"""Fused operations of the trainer, each with a reference in plain torch.

`scalelab_kernels.reference` runs on all devices. The Triton operations have the same names, one
file for each; `scalelab_kernels.operations.get_operations` loads them by name. There is no
automatic fallback. Importing this package imports neither torch nor Triton.
"""
