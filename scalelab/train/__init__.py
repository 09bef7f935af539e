"""Train a decoder from a RunSpec. Only this package and the kernels import torch."""

import os

# By default MKL splits the sums of a matrix product among threads, so losses would depend on the
# number of threads. Strict reproducibility fixes the order. MKL reads this at its first product.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
