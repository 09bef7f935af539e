"""Training a decoder as a RunSpec says: the only room, with the kernels, that imports torch."""

import os

# MKL shares the sums of a matrix product among threads, so that losses would depend on their
# number; strict reproducibility fixes the order. MKL reads this once, at its first product.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
