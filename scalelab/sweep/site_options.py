"""Options of sbatch that a site requires: their names, and which of them the launcher sets itself.

``[launcher.slurm] sbatch`` and ``--sbatch`` hold them; keys of ``[launcher.slurm]`` that are no
option of scalelab but one of sbatch mean the same. Their values go into the batch script.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from scalelab.errors import UsageError
from scalelab.units import plural

SiteValue = bool | int | float | str
GPUS_PLACEHOLDER = "{gpus}"
"""Stands for the GPUs that a job requests on each node."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


SWITCHES = _names(
    "contiguous hold ignore-pbs overcommit oversubscribe reboot spread-job use-min-nodes"
)
"""Options of sbatch without a value."""

OPTIONAL_VALUE = _names("exclusive export get-user-env nice no-kill propagate")
"""Options of sbatch that may have a value."""

WITH_VALUE = _names(
    "acctg-freq batch bb bbf begin chdir cluster-constraint comment constraint container "
    "container-id core-spec cores-per-socket cpu-freq deadline delay-boot dependency distribution "
    "exclude export-file extra extra-node-info gid gpu-bind gpu-freq gpus-per-node "
    "gpus-per-socket gres gres-flags hint input kill-on-invalid-dep licenses mail-type mail-user "
    "mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus network nodefile nodelist "
    "oom-kill-step power prefer priority profile reservation segment sockets-per-node switches "
    "thread-spec threads-per-core tmp tres-bind tres-per-task uid wckey"
)
"""Options of sbatch that need a value."""

UNLISTED = _names("acctg-freq batch extra hint kill-on-invalid-dep prefer")
"""Options that sbatch has, though `sbatch --help` does not list them."""

MEMORY_OPTIONS = _names("mem mem-per-cpu mem-per-gpu")
"""Options that replace the memory that the launcher would request."""

_LOGS = "Remove it: the launcher chooses the log file. Read it with `scalelab logs RUN`."
_TASKS = "Use --gpus-per-run and --gpus-per-node: the launcher starts one task per GPU."
_CPUS = "Use --cpus, for example --cpus 8."
_RESTARTS = "Remove it: the launcher relies on requeued jobs and on USR2 before the time limit."
_ANSWER = "Remove it: the launcher reads the job number that sbatch prints."
OWN_OPTIONS: Mapping[str, str] = {
    "array": "Use --array-parallelism to limit the jobs that run at once.",
    "job-name": "Use --name: the launcher finds its jobs by the name of the sweep.",
    **dict.fromkeys(("output", "error", "open-mode"), _LOGS),
    **dict.fromkeys(("signal", "requeue", "no-requeue"), _RESTARTS),
    **dict.fromkeys(("time", "time-min"), "Use --time, for example --time 4:00:00."),
    "partition": "Use --partition, for example --partition gpu.",
    "account": "Use --account, for example --account lab.",
    "qos": "Use --qos, for example --qos high.",
    **dict.fromkeys(("nodes", "ntasks", "ntasks-per-node", "ntasks-per-core"), _TASKS),
    **dict.fromkeys(("ntasks-per-socket", "ntasks-per-gpu"), _TASKS),
    **dict.fromkeys(("gpus", "gpus-per-task"), _TASKS),
    **dict.fromkeys(("cpus-per-task", "cpus-per-gpu"), _CPUS),
    "clusters": "Remove it: the launcher watches the queue of the default cluster.",
    **dict.fromkeys(("parsable", "test-only", "wait", "quiet", "verbose", "wrap"), _ANSWER),
    **dict.fromkeys(("help", "usage", "version"), _ANSWER),
}
"""Options that the launcher sets or relies on, and what to use instead."""

KNOWN_OPTIONS = SWITCHES | OPTIONAL_VALUE | WITH_VALUE | set(OWN_OPTIONS)

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_EXAMPLE = "Write for example --sbatch constraint=a100."


def split_pairs(pairs: object) -> dict[str, SiteValue]:
    """Return the site options of ``KEY=VALUE`` texts; ``KEY`` alone is a switch.

    Raises
    ------
    UsageError
        If an item is not text.
    """
    found: dict[str, SiteValue] = {}
    for pair in [pairs] if isinstance(pairs, str) else pairs:  # type: ignore[attr-defined]
        if not isinstance(pair, str):
            raise UsageError(f"sbatch {pair!r}", "KEY=VALUE, or KEY for a switch", _EXAMPLE)
        key, separator, value = pair.partition("=")
        found[option_name(key)] = value if separator else True
    return found


def option_name(key: str) -> str:
    """Return the long name of an option of sbatch as sbatch writes it: ``mail-type``."""
    return key.strip().removeprefix("--").replace("_", "-")


def is_known(key: str) -> bool:
    """Return whether sbatch is known to have an option of this name."""
    return option_name(key) in KNOWN_OPTIONS


def read_site_options(value: Any) -> dict[str, SiteValue]:
    """Return site options by long name, from a table or from ``KEY=VALUE`` texts.

    ``true`` writes the option without a value; ``false`` writes no such option.

    Raises
    ------
    UsageError
        If the launcher sets an option itself, a name or a value cannot be written to a batch
        script, or a value is missing or superfluous.
    """
    if isinstance(value, (str, list, tuple)):
        value = split_pairs(value)
    if not isinstance(value, Mapping):
        raise UsageError(
            f"sbatch = {value!r}",
            "a table of options of sbatch",
            'Write for example sbatch = {constraint = "a100", exclusive = true}.',
        )
    return {option_name(key): _read_value(option_name(key), item) for key, item in value.items()}


def _read_value(name: str, value: Any) -> SiteValue:
    """Return the value of a site option, checked; parameters and errors as above."""
    if name in OWN_OPTIONS:
        raise UsageError(
            f"option --{name} of sbatch, which the launcher sets itself",
            "options of sbatch that your site requires, for example constraint, reservation or "
            "gres",
            OWN_OPTIONS[name],
        )
    _require_name(name)
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value, value)
    if value is False:
        return False
    if not isinstance(value, (bool, int, float, str)) or value == "":
        raise UsageError(
            f"{value!r} as the value of sbatch's option --{name}",
            "text, a number, true or false",
            f"Write for example --sbatch {name}=VALUE, or {name} = false to leave it out.",
        )
    if value is True and name in WITH_VALUE:
        raise UsageError(
            f"sbatch's option --{name} without a value",
            f"--{name} with a value",
            f"Write --sbatch {name}=VALUE, or {name} = false to leave it out.",
        )
    if value is not True and name in SWITCHES:
        raise UsageError(
            f"sbatch's option --{name} with the value {value!r}",
            f"--{name} without a value",
            f"Write --sbatch {name}, or {name} = true in a sweep file.",
        )
    if isinstance(value, str) and ("\\" in value or not value.isprintable()):
        # sbatch drops backslashes, and a line break would end the line of the option.
        raise UsageError(
            f"{value!r} as the value of sbatch's option --{name}",
            "text in one line without backslashes and control characters",
            "Remove these characters. Spaces and quotes are allowed.",
        )
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _require_name(name: str) -> None:
    """Raise UsageError for a name that sbatch cannot have or would complete to another one."""
    if len(name) == 1 or _NAME.fullmatch(name) is None:
        raise UsageError(
            f"{name!r} as an option of sbatch",
            "the long name of an option, such as constraint",
            _EXAMPLE,
        )
    if name not in KNOWN_OPTIONS:
        # sbatch completes abbreviations, which could name an option of the launcher.
        longer = sorted(known for known in KNOWN_OPTIONS if known.startswith(name))
        if longer:
            raise UsageError(
                f"{name!r}, an abbreviation of an option of sbatch",
                f"the long name: {', '.join(longer)}",
                OWN_OPTIONS.get(longer[0], f"Write {longer[0]}."),
            )


def refuse_unknown(options: Mapping[str, SiteValue], installed: frozenset[str]) -> None:
    """Raise UsageError for a site option that the installed sbatch does not have.

    Parameters
    ----------
    options : Mapping
        Site options by long name.
    installed : frozenset of str
        Long names that the installed sbatch lists, with those that plugins of the site add.
    """
    known = installed | UNLISTED
    for name in options:
        if name not in known:
            near = get_close_matches(name, sorted(known.difference(OWN_OPTIONS)), n=1)
            raise UsageError(
                f"option --{name}, which the installed sbatch does not have",
                "an option that `sbatch --help` lists",
                f"Did you mean {near[0]}?" if near else f"Remove {name}.",
            )


def apply_site_options(
    parameters: dict[str, Any], options: Mapping[str, SiteValue], n_gpus: int
) -> dict[str, Any]:
    """Return submitit's parameters with site options, which replace what the launcher would write.

    Parameters
    ----------
    parameters : dict
        Of an array, by submitit's names.
    options : Mapping
        Site options by long name.
    n_gpus : int
        GPUs that a job requests on each node, for `GPUS_PLACEHOLDER`.
    """
    kept, added = dict(parameters), dict(parameters.get("additional_parameters") or {})
    for name, value in options.items():
        key = name.replace("-", "_")
        kept.pop(key, None)
        if name in MEMORY_OPTIONS:
            kept.pop("mem", None)
        if name == "gres" and value is not False and gpus_requested(name, value):
            kept.pop("gpus_per_node", None)
        if value is not False:
            is_text = isinstance(value, str)
            added[key] = str(value).replace(GPUS_PLACEHOLDER, str(n_gpus)) if is_text else value
    return {**kept, "additional_parameters": added}


def require_gpus(options: Mapping[str, SiteValue], n_gpus: int) -> None:
    """Raise UsageError if site options request another number of GPUs on a node than a job uses."""
    for name, kind in (("gres", "gpu:h100:"), ("gpus-per-node", "h100:")):
        value = options.get(name, False)
        asked = gpus_requested(name, value, n_gpus) if value is not False else None
        if asked in (None, n_gpus) or (name == "gres" and not asked):
            continue
        raise UsageError(
            f"--{name}={value} of sbatch for a job that uses {plural(n_gpus, 'GPU')} of a node",
            f"a request for {plural(n_gpus, 'GPU')}",
            f'Write {name} = "{kind}{GPUS_PLACEHOLDER}", or change --gpus-per-run.',
        )


def gpus_requested(name: str, value: SiteValue, n_gpus: int = 1) -> int:
    """Return the GPUs that ``gres`` or ``gpus-per-node`` requests; 0 if it requests none."""
    total = 0
    for part in str(value).replace(GPUS_PLACEHOLDER, str(n_gpus)).split(","):
        words = part.split("(")[0].split(":")
        words = words[1:] if words[0] == "gres" else words
        if name == "gres" and words[0] != "gpu":
            continue
        total += int(words[-1]) if words[-1].isdecimal() else 1
    return total
