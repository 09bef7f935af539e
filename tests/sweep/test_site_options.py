"""Options of sbatch that a site requires: names, values, and what they replace."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalelab.errors import UsageError
from scalelab.launch.slurm.batch_script import make_executor
from scalelab.launch.slurm.resources import JobResources
from scalelab.sweep.gpu_counts import gpu_numbers
from scalelab.sweep.option import validated
from scalelab.sweep.site_options import (
    KNOWN_OPTIONS,
    OWN_OPTIONS,
    read_site_options,
    refuse_unknown,
    require_gpus,
)
from scalelab.sweep.tables import LauncherTable, SlurmTable


def table_of(**content: Any) -> SlurmTable:
    return validated(SlurmTable, content, source="the test")


def lines_of(folder: Path, **content: Any) -> dict[str, str]:
    """Return the options in the batch script of a table by name; a switch is empty text."""
    table = table_of(**content)
    resources = JobResources(gpus=gpu_numbers(table.gpus_per_run)[0], time_min=60, memory_gb=16.0)
    script = make_executor(table, resources, folder, "scalelab.x.0", n_elements=1, throttle=1)
    found = [line for line in script.script().splitlines() if line.startswith("#SBATCH --")]
    pairs = [line.removeprefix("#SBATCH --").partition("=") for line in found]
    assert len({name for name, _, _ in pairs}) == len(pairs)
    return {name: "".join(shlex.split(value)) for name, _, value in pairs}


def test_site_options_replace_what_the_launcher_would_write(tmp_path: Path) -> None:
    assert lines_of(tmp_path)["mem"] == "16384MB"
    site = lines_of(
        tmp_path,
        gpus_per_run=2,
        sbatch={
            "constraint": "a100",
            "reservation": "the r",
            "gres": "gpu:h100:{gpus}",
            "exclusive": True,
            "mem": 0,
            "wckey": "w",
            "comment": "ours",
        },
    )
    assert (site["constraint"], site["reservation"]) == ("a100", "the r")
    assert (site["gres"], site["exclusive"]) == ("gpu:h100:2", "")
    assert (site["mem"], site["wckey"], site["comment"]) == ("0", "w", "ours")
    assert "gpus-per-node" not in site
    assert "requeue" in site
    assert "mem" not in lines_of(tmp_path, sbatch={"mem": False})
    assert "mem" not in lines_of(tmp_path, sbatch={"mem-per-gpu": "60G"})
    # Another generic resource does not replace the GPUs.
    assert lines_of(tmp_path, sbatch={"gres": "tmp:10G"})["gpus-per-node"] == "1"


def test_keys_beside_those_of_the_launcher_mean_the_same() -> None:
    whole = table_of(sbatch={"constraint": "a100", "mem": 0, "mail-type": "END"})
    assert table_of(constraint="a100", mem=0, sbatch={"mail_type": "END"}) == whole
    assert (
        table_of(constraint="v100", sbatch=["constraint=a100", "mem=0", "mail-type=END"]) != whole
    )
    assert table_of(constraint="v100", sbatch="constraint=a100").sbatch == {"constraint": "a100"}
    with pytest.raises(UsageError, match="unknown key constrain in") as error:
        table_of(constrain="a100")
    assert error.value.do == "Did you mean constraint?"
    with pytest.raises(UsageError, match="unknown key partitio in"):
        table_of(partitio="gpu")


def test_what_is_saved_for_resume_is_read_as_it_was() -> None:
    launcher = LauncherTable(
        slurm=table_of(sbatch={"exclusive": True, "mem": False, "nice": 5, "comment": 'it\'s "x"'})
    )
    assert LauncherTable.model_validate_json(launcher.model_dump_json()) == launcher


@pytest.mark.parametrize("name", sorted(OWN_OPTIONS))
def test_options_of_the_launcher_are_refused_with_what_to_use(name: str) -> None:
    with pytest.raises(UsageError, match=f"--{name} of sbatch, which the launcher sets") as error:
        table_of(sbatch={name: 1})
    assert OWN_OPTIONS[name] in error.value.do


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("constraint", True, "without a value"),
        ("constraint", "", "'' as the value"),
        ("constraint", ["a"], "as the value"),
        ("hold", "yes", "with the value 'yes'"),
        ("comment", "a\n#SBATCH --uid=0", "one line"),
        ("comment", "a\x0bb", "one line"),
        ("comment", "a\u2028b", "one line"),
        ("comment", "back\\slash", "without backslashes"),
        ("C", "a100", "the long name"),
        ("a b", "a100", "the long name"),
        ("x\nrm", "a100", "the long name"),
        ("arra", "0-5", "an abbreviation"),
        ("constr", "a100", "Write constraint."),
    ],
)
def test_what_cannot_be_written_is_refused(name: str, value: Any, words: str) -> None:
    with pytest.raises(UsageError) as error:
        table_of(sbatch={name: value})
    assert words in f"{error.value.given} {error.value.allowed} {error.value.do}"


@given(value=st.text(min_size=1).filter(lambda text: text not in ("true", "false")))
def test_no_value_leaves_its_line(value: str) -> None:
    try:
        read_site_options({"comment": value})
    except UsageError:
        return
    table = table_of(sbatch={"comment": value})
    resources = JobResources(gpus=1, time_min=60, memory_gb=16.0)
    script = make_executor(
        table, resources, Path("/r"), "scalelab.x.0", n_elements=1, throttle=1
    ).script()
    (line,) = [line for line in script.splitlines() if line.startswith("#SBATCH --comment=")]
    assert shlex.split(line.partition("=")[2]) == [value.replace("{gpus}", "1")]
    assert len(script.splitlines()) == script.count("\n") + (not script.endswith("\n"))


@pytest.mark.parametrize(
    ("options", "n_gpus", "is_right"),
    [
        ({"gres": "gpu:h100:2"}, 2, True),
        ({"gres": "gpu:h100:2"}, 1, False),
        ({"gres": "gpu"}, 1, True),
        ({"gres": "gres:gpu:a100:{gpus},tmp:1G"}, 8, True),
        ({"gres": "gpu:a100:2,gpu:h100:2"}, 4, True),
        ({"gres": "tmp:1G"}, 8, True),
        ({"gres": "gpu:1"}, 0, False),
        ({"gpus-per-node": "h100:4"}, 8, False),
        ({"gpus-per-node": "h100:4"}, 4, True),
        ({"gpus-per-node": False, "gres": "gpu:4"}, 4, True),
    ],
)
def test_the_gpus_of_a_site_option_are_those_of_the_job(
    options: dict[str, Any], n_gpus: int, is_right: bool
) -> None:
    if is_right:
        require_gpus(options, n_gpus)
    else:
        with pytest.raises(UsageError, match=r"\{gpus\}"):
            require_gpus(options, n_gpus)


def test_an_option_that_the_installed_sbatch_lacks_is_refused() -> None:
    installed = KNOWN_OPTIONS - {"segment"} | {"container-image"}
    refuse_unknown({"container-image": "x", "hint": "compute_bound"}, frozenset(installed))
    with pytest.raises(UsageError, match="--segment"):
        refuse_unknown({"segment": 4}, frozenset(installed))
    with pytest.raises(UsageError) as error:
        refuse_unknown({"container-imag": "x"}, frozenset(installed))
    assert error.value.do == "Did you mean container-image?"
