"""One BLAS thread for the linear algebra of small tables.

Fits and forecasts solve thousands of systems of a few dozen rows. Threads of the BLAS library
wait for one another at each: with two threads on two busy cores a forecast took 10 times longer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from threadpoolctl import ThreadpoolController

_P = ParamSpec("_P")
_T = TypeVar("_T")


def on_one_thread(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Return the function, during whose calls BLAS uses one thread."""

    @functools.wraps(function)
    def limited(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with _controller().limit(limits=1, user_api="blas"):
            return function(*args, **kwargs)

    return limited


@functools.cache
def _controller() -> ThreadpoolController:
    """Return the BLAS libraries of NumPy and SciPy.

    It loads both first: a library that is loaded later would keep all its threads.
    """
    import scipy.linalg  # noqa: F401 -- SciPy has its own BLAS library beside NumPy's

    return ThreadpoolController()
