"""Merge one run that exists in two results folders: what to write so that both are one.

Attempts are told apart by their tokens. An attempt that only the other folder has is added; if its
number is taken here, it gets the next free one. Of one attempt in two states (a folder that was
copied while it trained), the later state counts. The accepted attempt of this folder stays; if it
has none, the other folder's is accepted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scalelab.records.evaluations import EVALUATIONS_FILE, evaluations_text, read_evaluations
from scalelab.records.files import list_entries, read_json
from scalelab.records.parts import RUN, Part, Write, walk
from scalelab.records.run_dir import Attempt, RunDir, end_of
from scalelab.records.types import RunRecord

RECORD, NOTE, CURVE, CLAIMS, ACCEPTED = (
    *("record.json", "attempt.json", "metrics.jsonl", "claims", "accepted"),
)
_COMPARED_BYTES = 1 << 20


@dataclass(frozen=True, order=True, slots=True)
class Conflict:
    """Two folders that contradict each other about a part; ``what`` says in what."""

    part: Part
    what: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RunMerge:
    """How to merge a run: what to write, in this order, and what contradicts."""

    writes: tuple[Write, ...]
    conflicts: tuple[Conflict, ...]


def merge_run(
    ours: RunDir, theirs: RunDir, *, prefers_theirs: bool, skipped: frozenset[str] = frozenset()
) -> RunMerge:
    """Return how to merge a run of another results folder into ours.

    Parameters
    ----------
    ours, theirs : RunDir
        Folders of the same run.
    prefers_theirs : bool
        What the writes do about conflicts: whether their state replaces ours.
    skipped : frozenset of str
        Tokens of their attempts that are left out.
    """
    merging = _Merging(ours, theirs, prefers_theirs)
    if not ours.attempts():
        merging.add_marks()
    for attempt in theirs.attempts():
        if attempt.token not in skipped:
            merging.add(attempt)
    merging.accept(skipped)
    if ours.attempts():
        merging.add_evaluations()
    return RunMerge(writes=tuple(merging.writes), conflicts=tuple(merging.conflicts))


class _Merging:
    def __init__(self, ours: RunDir, theirs: RunDir, prefers_theirs: bool) -> None:
        self.ours, self.theirs, self.prefers_theirs = ours, theirs, prefers_theirs
        self.accepted, self.their_accepted = ours.accepted(), theirs.accepted()
        self.known = {attempt.token: attempt for attempt in ours.attempts()}
        self.taken = {
            int(entry.name): entry.read_text(encoding="utf-8", errors="replace").strip()
            for entry in list_entries(ours.path / CLAIMS)
            if entry.name.isdecimal()
        }
        self.taken.update((attempt.number, token) for token, attempt in self.known.items())
        self.numbers = self._numbers()
        self.writes: list[Write] = []
        self.conflicts: list[Conflict] = []

    def _numbers(self) -> dict[int, int]:
        """Return our number of each of their attempts."""
        ours = {token: number for number, token in self.taken.items()}
        attempts = self.theirs.attempts()
        top = max([*self.taken, *(attempt.number for attempt in attempts)], default=0)
        numbers = {}
        for attempt in attempts:
            number = ours.get(attempt.token)
            if number is None and attempt.number not in self.taken:
                number = attempt.number
            if number is None:
                number = top = top + 1
            numbers[attempt.number] = number
        return numbers

    def add_marks(self) -> None:
        """Add the files beside the attempts: marks and log."""
        for name, path in walk(self.theirs.path, frozenset({"attempts", CLAIMS})):
            target = self.ours.path / name
            if path.is_file() and name != ACCEPTED and not target.exists():
                self.writes.append(Write(target=target, source=path))

    def add(self, attempt: Attempt) -> None:
        """Add an attempt, or what it has more than ours."""
        if attempt.token in self.known:
            self._continue(self.known[attempt.token], attempt)
            return
        number = self.numbers[attempt.number]
        if number not in self.taken:
            claim = self.ours.path / CLAIMS / str(number)
            self.writes.append(Write(target=claim, texts={"": attempt.token}))
        is_result = self.accepted is None or attempt.token == self._token(self.their_accepted)
        skips = () if is_result else (c.path.name for c in attempt.checkpoints())
        self.writes.append(
            Write(
                target=self.ours.path / "attempts" / f"{number}-{attempt.token}",
                source=attempt.path,
                texts=self._renumbered(attempt),
                skips=frozenset(skips),
            )
        )

    def accept(self, skipped: frozenset[str]) -> None:
        """Accept their accepted attempt if we have none, or if it is preferred."""
        theirs = self.their_accepted
        record = None if theirs is None else theirs.read_record()
        if theirs is None or record is None or theirs.token in skipped:
            return
        if self.accepted is not None and self.accepted.token != theirs.token:
            own = self.accepted.read_record()
            # An attempt that is here already was left superseded by an earlier merge.
            if _result(own) == _result(record) or theirs.token in self.known:
                return
            self._conflict(
                f"two accepted results: {_loss_text(own)} here, {_loss_text(record)} there"
            )
            if not self.prefers_theirs:
                return
        elif self.accepted is not None:
            return
        name = f"{self.numbers[theirs.number]}-{theirs.token}"
        target = self.ours.path / ACCEPTED
        replaces = self.accepted is not None
        self.writes.append(Write(target=target, texts={"": name}, replaces=replaces))

    def add_evaluations(self) -> None:
        """Add their evaluations of the same weights; ours stay where both have one."""
        accepted = self._token(self.accepted)
        if accepted is not None and accepted != self._token(self.their_accepted):
            return
        own = {found.key: found for found in read_evaluations(self.ours.path)}
        other = {found.key: found for found in read_evaluations(self.theirs.path)}
        both = own | other if self.prefers_theirs else other | own
        if both != own:
            target = self.ours.path / EVALUATIONS_FILE
            content = evaluations_text(list(both.values()))
            self.writes.append(Write(target=target, texts={"": content}, replaces=True))

    def _continue(self, ours: Attempt, theirs: Attempt) -> None:
        """Take the later of two states of one attempt."""
        texts = self._renumbered(theirs)
        own, other = (read_json(ours.path / RECORD), _json(theirs.path, RECORD, texts))
        own_note, note = (read_json(ours.path / NOTE) or {}, _json(theirs.path, NOTE, texts) or {})
        curves = _compare(ours.path / CURVE, theirs.path / CURVE, quick=own == other is not None)
        # Each is 1 if theirs has more, -1 if ours has, 0 if they are equal.
        states = [
            curves or 0,
            (other is not None) - (own is not None),
            bool(end_of(note)) - bool(end_of(own_note)),
        ]
        differ = own is not None and other is not None and own != other
        if differ or curves is None or {1, -1} <= set(states):
            losses = f" (loss {_loss(own)} here, {_loss(other)} there)" if differ else ""
            what = "records" if differ else "training curves"
            self._conflict(f"attempt {ours.number} has two {what}{losses}")
            if not self.prefers_theirs:
                return
        elif 1 not in states:
            return
        newest = max((c.step for c in ours.checkpoints()), default=0)
        old = {c.path.name for c in theirs.checkpoints() if c.step <= newest}
        last: list[Write] = []
        for name, path in walk(theirs.path, frozenset(old)):
            target = ours.path / name
            if "/" in name or (name.startswith("checkpoint-") and target.exists()):
                continue
            text = {"": texts[name]} if name in texts else {}
            write = Write(target=target, source=path, texts=text, replaces=True)
            (last if name in (RECORD, NOTE) else self.writes).append(write)
        self.writes += sorted(last, key=lambda write: write.target.name, reverse=True)

    def _renumbered(self, attempt: Attempt) -> dict[str, str]:
        """Return the content of the files that name the number of an attempt, if it changes."""
        texts = {}
        record, note = read_json(attempt.path / RECORD), read_json(attempt.path / NOTE)
        number = self.numbers[attempt.number]
        if record is not None and number != attempt.number:
            texts[RECORD] = _text({**record, "attempt": number})
        source = (note or {}).get("resumed_from")
        if note is not None and isinstance(source, dict):
            resumed = self.numbers.get(source.get("attempt", 0), source.get("attempt"))
            if resumed != source.get("attempt"):
                texts[NOTE] = _text({**note, "resumed_from": {**source, "attempt": resumed}})
        return texts

    def _conflict(self, what: str) -> None:
        self.conflicts.append(Conflict(Part(RUN, self.ours.run_id), what))

    @staticmethod
    def _token(attempt: Attempt | None) -> str | None:
        return None if attempt is None else attempt.token


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True)


def _json(folder: Path, name: str, texts: Mapping[str, str]) -> dict[str, Any] | None:
    return json.loads(texts[name]) if name in texts else read_json(folder / name)


def _compare(ours: Path, theirs: Path, *, quick: bool) -> int | None:
    """Return which of two growing files is longer (1: theirs, -1: ours, 0), None if they differ.

    With ``quick``, files of one size count as equal.
    """
    sizes = [path.stat().st_size if path.exists() else 0 for path in (ours, theirs)]
    if not quick or sizes[0] != sizes[1]:
        left = min(sizes)
        if left:
            with ours.open("rb") as one, theirs.open("rb") as other:
                while left > 0:
                    part = min(left, _COMPARED_BYTES)
                    if one.read(part) != other.read(part):
                        return None
                    left -= part
    return (sizes[1] > sizes[0]) - (sizes[1] < sizes[0])


def _result(record: RunRecord | None) -> tuple[Any, ...] | None:
    return None if record is None else (record.status, record.loss_nats)


def _loss(record: Mapping[str, Any] | None) -> Any:
    return (record or {}).get("loss_nats")


def _loss_text(record: RunRecord | None) -> str:
    if record is None:
        return "no valid record"
    content = asdict(record)
    return "diverged" if record.status == "diverged" else f"loss {content['loss_nats']}"
