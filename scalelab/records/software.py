"""Versions of the software that a measurement of the trainer holds for, found without torch."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
from pathlib import Path

import scalelab_kernels

import scalelab

ABSENT = "none"


@functools.cache
def trainer_revision() -> str:
    """Return 16 hex digits of the sources that a step consists of: the kernels and the trainer."""
    digest = hashlib.sha256(scalelab_kernels.revision().encode())
    folder = Path(scalelab.__file__).parent / "train"
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def installed_version(package: str) -> str:
    """Return the version of an installed package, ``none`` if it is absent."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ABSENT
