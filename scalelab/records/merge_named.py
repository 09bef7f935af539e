"""Merge the parts that people name: sweeps, imports and registered forecasts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from scalelab.errors import UsageError, did_you_mean
from scalelab.records.files import read_json
from scalelab.records.merge_run import Conflict
from scalelab.records.names import check_name
from scalelab.records.parts import FORECAST, IMPORT, SWEEP, Part, Write, list_parts, walk
from scalelab.records.sweep_dir import Results, SavedPlan
from scalelab.units import plural

JOB_ENTRIES = frozenset({"intents", "job_groups", "snapshot"})
"""Entries of a sweep folder about jobs of the cluster where it was launched."""

PLAN, SPEC, DATA = "plan.json", "spec.json", "data.parquet"
_ABOUT = {SWEEP: PLAN, IMPORT: "mapping.json", FORECAST: ""}
"""The file of a part that has its name."""
_SAME_IN_IMPORTS = ("columns", "param_convention", "flop_convention")

Merged = tuple[Part, Sequence[Write], Sequence[Conflict]]


class NamedParts:
    """Compares the named parts of two results folders.

    Parameters
    ----------
    ours, theirs : Path
        The results folders.
    prefer : {"ours", "theirs"} or None
        Whose state counts where they contradict.
    renames : Mapping[str, str]
        New names of their parts.
    with_jobs : bool
        Whether `JOB_ENTRIES` of new sweeps come along.

    Raises
    ------
    UsageError
        If no part of theirs has a name to change, or the new name is not valid.
    """

    def __init__(
        self,
        ours: Path,
        theirs: Path,
        *,
        prefer: str | None,
        renames: Mapping[str, str],
        with_jobs: bool,
    ) -> None:
        self.ours, self.theirs, self.prefer, self.renames = ours, theirs, prefer, renames
        self.skips = frozenset() if with_jobs else JOB_ENTRIES
        named = {_name(part) for part in list_parts(theirs) if part.kind in _ABOUT}
        for name, new in renames.items():
            check_name(new)
            if name not in named:
                raise UsageError(
                    f"--rename {name}={new}, but {theirs} has no {name!r}",
                    f"one of {', '.join(sorted(named))}" if named else "a sweep of that folder",
                    did_you_mean(name, named) + "Leave --rename out, or correct the name.",
                )

    def merge(self, part: Part) -> Merged:
        """Return the part under its name here, what to write, and what contradicts.

        Raises
        ------
        DataError
            If their part, or ours of that name, cannot be read.
        """
        name = self.renames.get(_name(part), _name(part))
        here = Part(part.kind, name + (".json" if part.is_file else ""))
        there = part.path(self.theirs)
        texts = {}
        about = read_json(there / _ABOUT[part.kind])
        if name != _name(part) and about is not None:
            text = json.dumps({**about, "name": name}, indent=1)
            texts[_ABOUT[part.kind]] = text + "\n" * part.is_file
        other = {SWEEP: IMPORT, IMPORT: SWEEP}.get(part.kind)
        if other is not None and Part(other, name).path(self.ours).exists():
            return here, (), (Conflict(here, f"its name is that of {_article(other)} here"),)
        saved = Results(self.theirs).load_plan(part.name) if part.kind == SWEEP else None
        target = here.path(self.ours)
        if not target.exists():
            skips = self.skips if part.kind == SWEEP else frozenset()
            return here, [Write(target=target, source=there, texts=texts, skips=skips)], ()
        if saved is not None:
            return here, *self._sweep(here, saved, there, texts)
        if _same(here.path(self.ours), there, part.kind, texts):
            return here, (), ()
        if self.prefer == "ours":
            return here, (), ()
        if self.prefer == "theirs" and part.kind == IMPORT:
            return here, [Write(target=target, source=there, texts=texts, replaces=True)], ()
        never = "; registered forecasts never change" * (part.kind == FORECAST)
        return here, (), (Conflict(here, f"another content here and there{never}"),)

    def _sweep(
        self, here: Part, theirs: SavedPlan, there: Path, texts: Mapping[str, str]
    ) -> tuple[Sequence[Write], Sequence[Conflict]]:
        """Merge two sweeps of one name: the plan with more runs, or both, as `--extend` does."""
        ours = Results(self.ours).load_plan(here.name)
        folder = here.path(self.ours)
        only_ours = [run_id for run_id in ours.run_ids if run_id not in theirs.budgets]
        only_theirs = [run_id for run_id in theirs.run_ids if run_id not in ours.budgets]
        takes_theirs = bool(only_theirs) and (not only_ours or self.prefer == "theirs")
        writes = []
        for name, path in walk(there, self.skips | JOB_ENTRIES):
            target = folder / name
            is_plan = name in (PLAN, SPEC)
            if (
                path.is_dir()
                or is_plan
                or (target.exists() and target.read_bytes() == path.read_bytes())
            ):
                continue
            if not target.exists():
                writes.append(Write(target=target, source=path))
            elif takes_theirs and name not in ("execution.json", "launcher.json"):
                writes.append(Write(target=target, source=path, replaces=True))
        if not only_theirs:
            return writes, ()
        if only_ours and self.prefer is None:
            what = (
                f"other runs: {plural(len(only_ours), 'run')} only here, {len(only_theirs)} only "
                "there"
            )
            return (), (Conflict(here, what),)
        chosen, added, budgets = (
            (there, only_ours, ours.budgets)
            if takes_theirs
            else (folder, only_theirs, theirs.budgets)
        )
        plan = json.loads((chosen / PLAN).read_text(encoding="utf-8"))
        plan["name"] = here.name
        plan["rows"] += [{"run_id": run_id, "budget_flops": budgets[run_id]} for run_id in added]
        spec = there / SPEC
        if takes_theirs and spec.exists():
            writes.append(Write(target=folder / SPEC, source=spec, replaces=True))
        text = json.dumps(plan, indent=1)
        writes.append(Write(target=folder / PLAN, texts={"": text}, replaces=True))
        return writes, ()


def _name(part: Part) -> str:
    return part.name.removesuffix(".json") if part.is_file else part.name


def _article(kind: str) -> str:
    return f"an {kind}" if kind == IMPORT else f"a {kind}"


def _same(ours: Path, theirs: Path, kind: str, texts: Mapping[str, str]) -> bool:
    """Whether two imports have the same rows, or two forecasts the same content."""
    if kind == IMPORT:
        abouts = [read_json(folder / _ABOUT[IMPORT]) or {} for folder in (ours, theirs)]
        if any(abouts[0].get(key) != abouts[1].get(key) for key in _SAME_IN_IMPORTS):
            return False
        ours, theirs = ours / DATA, theirs / DATA
        texts = {}
    if not ours.is_file() or not theirs.is_file():
        return ours.is_file() == theirs.is_file()
    there = texts[""].encode() if "" in texts else theirs.read_bytes()
    return ours.read_bytes() == there
