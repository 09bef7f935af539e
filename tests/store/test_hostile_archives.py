"""Hostile archives: each is refused for its reason, and writes nothing."""

import gzip
import hashlib
import json
import tarfile

import pytest

from scalelab import api
from scalelab.errors import DataError
from scalelab.records.unpack import unpack
from tests.store.conftest import tree

GOOD = "sweeps/demo/plan.json"
pytestmark = pytest.mark.usefixtures("without_waiting_for_the_disk")


def entry(path: str, content: bytes = b"x", **other) -> dict:
    digest = hashlib.sha256(content).hexdigest()
    return {"path": path, "bytes": len(content), "sha256": digest, **other}


def manifest_of(files: list, folders: list = (), **other) -> bytes:
    content = {"schema": 1, "name": "demo", "folders": list(folders), "files": files, **other}
    return json.dumps(content).encode()


def tar_of(*members: tuple[str | tarfile.TarInfo, bytes], ends: bool = True) -> bytes:
    out = b""
    for name, content in members:
        info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
        if not isinstance(name, tarfile.TarInfo):
            info.size = len(content)
        out += info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)
    return out + bytes(1024) * ends


def special(kind: bytes, name: str = GOOD, target: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


ONE = manifest_of([entry(GOOD)])
BAD_NAMES = (
    *("../x", "/etc/passwd", "runs/../../x", "sweeps/demo/../../../x", "sweeps/../x/y"),
    *("sweeps/.x/y", ".scalelab-live.duckdb", "scalelab.duckdb"),
    *("runs/zz/spec.json", "runs/0123456789ab", "trunks/x/y", "sweeps/demo", "sweeps", ""),
    *("sweeps/demo/launcher.lock", "sweeps\\demo\\x", "sweeps/demo/a\\b", "sweeps/demo/a\0b"),
    *("sweeps/demo/a\nb", "sweeps/-rf/x", "sweeps/" + "n" * 65 + "/x", "data//x", "./sweeps/a/b"),
    *("sweeps/demo/" + "a/" * 20 + "x", "sweeps/demo/" + "f" * 300, "~/x/y", "C:/x/y"),
    *("sweeps/demo/\u202etxt.exe", "sweeps/demo/\ud800", 7, None),
)
HOSTILE = {
    "empty": b"",
    "zeros": bytes(4096),
    "text": b"this is no archive" * 100,
    "no manifest": tar_of((GOOD, b"x")),
    "manifest is a link": tar_of((special(tarfile.SYMTYPE, "manifest.json", "/etc/passwd"), b"")),
    "manifest of a terabyte": tar_of(
        (special(tarfile.REGTYPE, "manifest.json", size=1 << 40), b"")
    ),
    "manifest is no JSON": tar_of(("manifest.json", b"\xff\x00{")),
    "manifest is a list": tar_of(("manifest.json", b"[]")),
    "manifest nests": tar_of(("manifest.json", b"[" * 200_000)),
    "manifest has a long number": tar_of(("manifest.json", b'{"schema": ' + b"1" * 9999 + b"}")),
    "other schema": tar_of(("manifest.json", manifest_of([], schema=2))),
    "bad sweep name": tar_of(("manifest.json", manifest_of([], name="../x"))),
    "not in the manifest": tar_of(("manifest.json", ONE), (GOOD, b"x"), ("sweeps/demo/y", b"x")),
    "outside, unlisted": tar_of(("manifest.json", ONE), ("../../evil", b"x")),
    "comes twice": tar_of(("manifest.json", ONE), (GOOD, b"x"), (GOOD, b"x")),
    "listed twice": tar_of(("manifest.json", manifest_of([entry(GOOD)] * 2)), (GOOD, b"x")),
    "missing": tar_of(("manifest.json", ONE)),
    "longer": tar_of(("manifest.json", ONE), (GOOD, b"xy")),
    "shorter": tar_of(("manifest.json", ONE), (GOOD, b"")),
    "other content": tar_of(("manifest.json", ONE), (GOOD, b"y")),
    "no end": tar_of(("manifest.json", ONE), (GOOD, b"x"), ends=False),
    "a file and a folder": tar_of(
        ("manifest.json", manifest_of([entry(GOOD), entry(f"{GOOD}/x")])), (GOOD, b"x")
    ),
    "a petabyte": tar_of(("manifest.json", manifest_of([entry(GOOD, bytes=10**15)]))),
    "a negative size": tar_of(("manifest.json", manifest_of([entry(GOOD, bytes=-1)]))),
    "a size of true": tar_of(("manifest.json", manifest_of([entry(GOOD, bytes=True)]))),
    "a checksum of another form": tar_of(("manifest.json", manifest_of([entry(GOOD, sha256="0")]))),
    "extended header of 8 GB": tar_of(
        ("manifest.json", ONE), (special(tarfile.XHDTYPE, size=8 << 30), b"")
    ),
    "long name of 1 GB": tar_of(
        ("manifest.json", ONE), (special(tarfile.GNUTYPE_LONGNAME, size=1 << 30), b"")
    ),
    **{
        f"type {kind!r}": tar_of(("manifest.json", ONE), (special(kind, target="/etc/passwd"), b""))
        for kind in (
            *(tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE),
            *(tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE, tarfile.CONTTYPE, b"?"),
        )
    },
    **{
        f"name {name!r:.40}": tar_of(
            ("manifest.json", manifest_of([entry(GOOD), {**entry(GOOD), "path": name}])),
            (GOOD, b"x"),
            (str(name)[:99].encode("ascii", "replace").decode(), b"x"),
        )
        for name in BAD_NAMES
    },
    **{
        f"folder {name!r:.40}": tar_of(
            ("manifest.json", manifest_of([entry(GOOD)], [name])), (GOOD, b"x")
        )
        for name in ("../x", "/tmp/x", "sweeps/.x", "trunks/x", "sweeps")
    },
}
REASONS = {
    "manifest of a terabyte": "its manifest claims",
    "not in the manifest": "is not in its manifest",
    "outside, unlisted": "is not in its manifest",
    "missing": "it lacks",
    "longer": "has 2 bytes, and the manifest says 1",
    "shorter": "has 0 bytes, and the manifest says 1",
    "other content": "does not have the checksum",
    "no end": "it is cut",
    "a file and a folder": "both a file and a folder",
    "a petabyte": "the disk has",
    "extended header of 8 GB": "is not a regular file",
    "long name of 1 GB": "a name that is too long",
    **{case: "is not a regular file" for case in HOSTILE if case.startswith("type")},
    **{case: "is not that of a file" for case in HOSTILE if case.startswith("folder")},
}
"""What stops a case; another check would stop some of them later."""


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused_and_writes_nothing(tmp_path, case):
    file = tmp_path / "in" / "x.tar.gz"
    file.parent.mkdir()
    file.write_bytes(gzip.compress(HOSTILE[case], 1))
    results = tmp_path / "deep" / "results"
    with pytest.raises(DataError, match="Nothing was restored") as error:
        api.restore(file, results=results)
    assert REASONS.get(case, "") in error.value.given
    assert [p.name for p in results.iterdir()] == [".scalelab-folders.lock"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "in"]


def test_the_good_one_among_them_is_restored(tmp_path):
    file = tmp_path / "x.tar.gz"
    file.write_bytes(gzip.compress(tar_of(("manifest.json", ONE), (GOOD, b"x"))))
    (tmp_path / "out").mkdir()
    assert unpack(file, tmp_path / "out").name == "demo"
    assert tree(tmp_path / "out") == {"sweeps": None, "sweeps/demo": None, GOOD: b"x"}
