"""Two results folders to merge, a merge of them, and what the attempts of a folder hold."""

from pathlib import Path

from scalelab.records.merge import apply_merge, plan_merge
from scalelab.records.run_dir import RunDir


def merge(ours: Path, theirs: Path, **options):
    plan = plan_merge(ours, theirs, **options)
    apply_merge(ours, plan)
    return plan


def attempts_of(results: Path) -> dict[str, dict[str, tuple]]:
    """Curve, record and note of each attempt by run and token, without what a number changes."""
    found = {}
    for folder in sorted((results / "runs").glob("*")):
        for attempt in RunDir(folder).attempts():
            record, note = attempt.read_record(), attempt.read_note()
            loss = None if record is None else record.loss_nats
            has_record = (attempt.path / "record.json").exists()
            assert has_record == (record is not None)
            content = (attempt.metrics_path.read_bytes(), loss, note.get("ended"))
            found.setdefault(folder.name, {})[attempt.token] = content
    return found


def two_folders(maker, tmp_path):
    found = []
    for name in ("laptop", "cluster"):
        (tmp_path / name / "runs").mkdir(parents=True)
        found.append(maker(tmp_path / name))
    return found
