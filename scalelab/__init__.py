"""Plan, train, record, fit and decide: scaling laws for language models, end to end.

In a notebook::

    import scalelab as sl

    report = sl.fit("runs.csv")
    sl.predict(report, "C=1e24")

Every name of `scalelab.api` is also a name here, and is imported at its first use.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalelab.api import *  # noqa: F403

__version__ = "0.1.0"

_VERB_PACKAGES = ("fit", "launch", "tune")
"""Packages with the name of a verb: ``scalelab.fit(df)`` calls the verb."""


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module 'scalelab' has no attribute {name!r}")
    api = importlib.import_module("scalelab.api")
    if name in _VERB_PACKAGES:
        return importlib.import_module(f"scalelab.{name}")
    if name not in api.__all__:
        raise AttributeError(f"module 'scalelab' has no attribute {name!r}")
    return getattr(api, name)


def __dir__() -> list[str]:
    api = importlib.import_module("scalelab.api")
    own = {
        name
        for name, value in globals().items()
        if name.startswith("__") or str(getattr(value, "__name__", "")).startswith("scalelab.")
    }
    return sorted({*own, *api.__all__})


class _VerbPackage(ModuleType):
    # A package that can be called as the verb of the same name.

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        inspect = importlib.import_module("inspect")
        name, verb = self.__name__.rpartition(".")[2], self._verb()
        own = self.__dict__["__doc__"]
        return f"{name}{self.__signature__}\n\n{inspect.getdoc(verb)}\n\nPackage {name}: {own}"

    def _verb(self) -> Any:
        api = importlib.import_module("scalelab.api")
        return getattr(api, self.__name__.rpartition(".")[2])

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._verb()(*args, **options)

    @property
    def __signature__(self) -> Any:
        inspect = importlib.import_module("inspect")
        return inspect.signature(self._verb())


class _Package(ModuleType):
    """The package ``scalelab``, which makes the packages of verbs callable when they load."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _VERB_PACKAGES and isinstance(value, ModuleType):
            value.__class__ = _VerbPackage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
