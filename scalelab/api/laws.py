"""Laws as files: save the law of a fit, and find a saved or published law by name or file."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from scalelab.api.data import DEFAULT_RESULTS
from scalelab.errors import DataError, UsageError, did_you_mean, unwritable

if TYPE_CHECKING:
    from scalelab.forecast.fit_report import FitReport
    from scalelab.forecast.law_file import SavedLaw

FOLDER = "laws"
"""Folder of the results folder in which laws are saved by name."""
SUFFIX = ".json"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


def save_law(
    report: FitReport,
    name: str | os.PathLike[str],
    *,
    results: str | Path = DEFAULT_RESULTS,
    unit: str | None = None,
    replace: bool = False,
) -> Path:
    """Save the law of a fit as JSON, and return the file.

    Parameters
    ----------
    report : FitReport
        From `fit`.
    name : str or path
        A name, for a file in ``laws/`` of the results folder, or a file that ends in ``.json``.
    results : str or Path
        The results folder.
    unit : str, optional
        Unit of the loss; default that of the fit's metric.
    replace : bool
        Whether to overwrite an existing file.

    Raises
    ------
    UsageError, DataError
        If the name is that of a published law or exists, or the file cannot be written.
    NotIdentifiedError
        If the runs do not determine the law.
    """
    import time

    from scalelab import __version__
    from scalelab.forecast.law_file import saved_law
    from scalelab.forecast.published_laws import PUBLISHED_LAWS
    from scalelab.records.files import write_atomically

    place = _place(str(name), Path(results))
    if place.stem in PUBLISHED_LAWS:
        raise UsageError(
            f"{place.stem} as the name of a saved law",
            "a name that no published law has",
            f"Use for example {place.stem}-refit.",
        )
    if place.exists() and not replace:
        raise UsageError(
            f"{place}, which exists",
            "a new name",
            "Choose another name, or write --replace.",
        )
    saved = saved_law(
        report,
        place.stem,
        unit=unit,
        version=__version__,
        date=time.strftime("%Y-%m-%d", time.gmtime()),
    )
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, json.dumps(saved.to_dict(), indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise unwritable(place.parent, "a law", error) from error
    return place


def load_law(name: str | os.PathLike[str], *, results: str | Path = DEFAULT_RESULTS) -> SavedLaw:
    """Return a law by its name or file.

    Parameters
    ----------
    name : str or path
        A published law, a law saved in ``laws/`` of the results folder, or a law file.
    results : str or Path
        The results folder.

    Raises
    ------
    UsageError
        If there is no such law.
    DataError
        If the file is not a law that this version reads.
    """
    from scalelab.forecast.published_laws import PUBLISHED_LAWS, as_saved

    text = os.fspath(name)
    if text in PUBLISHED_LAWS:
        return as_saved(text)
    if text and (place := _place(text, Path(results), is_strict=False)).is_file():
        return _read(place)
    known = [*PUBLISHED_LAWS, *(each.stem for each in _files(Path(results)))]
    raise UsageError(
        f"unknown law {text!r}",
        f"a law file, or one of {', '.join(known)}",
        did_you_mean(text, known)
        + "Use for example --law besiroglu, or save one: scalelab law save NAME --sweep SWEEP.",
    )


def list_laws(results: str | Path = DEFAULT_RESULTS) -> dict[str, SavedLaw | DataError]:
    """Return the laws saved in the results folder, then the published ones, by name.

    A file that cannot be read has its error.
    """
    from scalelab.forecast.published_laws import PUBLISHED_LAWS, as_saved

    out: dict[str, SavedLaw | DataError] = {}
    for place in _files(Path(results)):
        try:
            out[place.stem] = _read(place)
        except DataError as error:
            out[place.stem] = error
    return {**out, **{name: as_saved(name) for name in PUBLISHED_LAWS}}


def _files(results: Path) -> list[Path]:
    return sorted((results / FOLDER).glob(f"*{SUFFIX}"))


def _place(name: str, results: Path, *, is_strict: bool = True) -> Path:
    """Return the file of a name or path; a strict name must be usable as a new file."""
    if name.endswith(SUFFIX) or (not is_strict and Path(name).is_file()):
        return Path(name)
    if is_strict and not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} as the name of a law",
            "letters, digits, '-', '_' and '.', or a file that ends in .json",
            "Use for example scalelab law save demo, or scalelab law save laws/demo.json.",
        )
    return results / FOLDER / f"{name}{SUFFIX}"


def _read(place: Path) -> SavedLaw:
    from scalelab.forecast.law_file import parse_law

    try:
        text = place.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{place}, which cannot be read ({error})",
            "a law file, in UTF-8",
            "Check the path and its permissions.",
        ) from None
    return parse_law(text, str(place))
