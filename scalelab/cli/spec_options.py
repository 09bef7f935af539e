"""Command-line options of sweep commands, generated from the fields of their specification.

`SpecCommand` adds one option for each field that applies to the command, and groups ``--help`` in
panels. It imports the specification, and so pydantic, only when the command is used. The command
receives the values that the user gave from `spec_values`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from typer.core import TyperOption

    from scalelab.sweep.option import Option

FIRST = (
    *("target", "budget", "budgets", "n_params", "n_tokens", "sizes", "trials", "data", "seq_len"),
    *("name", "launcher", "workers", "dry_run", "yes", "results"),
)
"""Options that most people need; the first ten that a command has open its help."""
N_FIRST = 10
MOST_USED = "Most used"
PANELS = (
    *("What to run", "Search", "Data", "Model", "Training", "Training program"),
    *("Execution", "Launcher", "SLURM"),
)
LAST_PANEL = "Output"
_VALUES = "scalelab.spec_values"

Keys = tuple[str, ...]
"""Path of a field in a specification, such as ("train", "lr")."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpecValues:
    """Values of specification fields that the user gave, by path, as text or as in settings.

    Attributes
    ----------
    flags : Mapping
        From the command line.
    settings : Mapping
        From ``scalelab.toml`` and environment variables.
    """

    flags: Mapping[Keys, Any] = dataclasses.field(default_factory=dict)
    settings: Mapping[Keys, Any] = dataclasses.field(default_factory=dict)

    def get(self, *path: str) -> Any:
        """Return the value of a field, None where the user gave none."""
        return self.flags.get(path, self.settings.get(path))


def spec_values(context: typer.Context) -> SpecValues:
    """Return the values that the user gave to a command of class `SpecCommand`."""
    values: SpecValues = context.meta[_VALUES]
    return values


class PanelCommand(TyperCommand):
    """A command whose help is grouped by the panels of its options."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then each panel of options."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                is_argument = parameter.param_type_name == "argument"
                panel = getattr(parameter, "rich_help_panel", None) or "Options"
                panels.setdefault("Arguments" if is_argument else panel, []).append(record)
        for panel, records in panels.items():
            with formatter.section(panel):
                formatter.write_dl(records)


class SpecCommand(PanelCommand):
    """A command that has an option for each field of its specification."""

    _own: list[Any]
    _all: list[Any] | None

    def spec_options(self) -> tuple[Option, ...]:
        """Return the fields that apply to this command."""
        return options_of(str(self.name))

    @property
    def params(self) -> list[Any]:
        """Own parameters and those of the specification, in the order of the help."""
        if self._all is None:
            generated = _typer_options(self.spec_options(), str(self.name))
            self._all = _ordered([*self._own, *generated])
        return self._all

    @params.setter
    def params(self, own: list[Any]) -> None:
        self._own, self._all = own, None

    def invoke(self, ctx: Any) -> Any:
        """Run the command, with the values of the specification kept for `spec_values`."""
        flags: dict[Keys, Any] = {}
        settings: dict[Keys, Any] = {}
        for found in self.spec_options():
            name = _name(found)
            value, source = ctx.params.pop(name, None), ctx.get_parameter_source(name)
            if value not in (None, [], ()):
                is_flag = source is not None and source.name == "COMMANDLINE"
                if found.is_mapping:
                    from scalelab.sweep.flag_tables import flag_table

                    value = flag_table(found, value)
                (flags if is_flag else settings)[found.path] = value
        ctx.meta[_VALUES] = SpecValues(flags=flags, settings=settings)
        return super().invoke(ctx)


@functools.cache
def options_of(command: str) -> tuple[Option, ...]:
    """Return the options of the specification that apply to a command, by the command's name."""
    from scalelab.sweep.option import options
    from scalelab.sweep.spec import SweepSpec

    chosen = [item for item in options(SweepSpec) if item.flag is not None]
    if command == "tune":
        from scalelab.tune.spec import TuneSpec

        own = [item for item in options(TuneSpec) if item.path[0] != "sweep" and item.flag]
        chosen = [*own, *chosen]
    if command in ("resume", "retry"):
        kept = ("execution", "launcher")
        usable = (o for o in chosen if o.path[0] in kept)
        return tuple(o for o in usable if not o.commands or command in o.commands)
    if command == "run":
        return tuple(chosen)
    return tuple(o for o in chosen if not o.commands or command in o.commands)


def spread_options(command: Callable[..., int]) -> Callable[..., int]:
    """Return a command whose parameter ``options``, a dataclass, becomes an option per field."""
    signature = inspect.signature(command)
    hints = get_type_hints(command, include_extras=True)
    kind = hints["options"]
    names = [item.name for item in dataclasses.fields(kind)]
    field_hints = get_type_hints(kind, include_extras=True)
    own = [
        item.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, item in signature.parameters.items()
        if name != "options"
    ]
    added = [
        inspect.Parameter(
            item.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=item.default,
            annotation=field_hints[item.name],
        )
        for item in dataclasses.fields(kind)
    ]

    @functools.wraps(command)
    def spread(**values: Any) -> int:
        options = kind(**{name: values.pop(name) for name in names})
        return command(options=options, **values)

    parameters = [*own, *added]
    spread.__dict__["__signature__"] = signature.replace(parameters=parameters)
    spread.__annotations__ = {item.name: item.annotation for item in parameters} | {"return": int}
    return spread


def _name(found: Option) -> str:
    return str(found.flag).lstrip("-").replace("-", "_")


def _typer_options(found: tuple[Option, ...], command: str) -> list[TyperOption]:
    """Return click options without type conversion: the specification reads their text."""
    from scalelab.sweep.spec import AXES

    parameters = []
    for item in found:
        notes = [f"default: {item.default}"] if item.default and item.metavar else []
        has_example = item.example and item.metavar and "|" not in item.metavar
        notes += [f"example: {item.example}"] if has_example else []
        if item.path[-1] in AXES.get(command, ()):
            is_size = item.path == ("n_params",)
            notes.append("required without --shape-list" if is_size else "required")
        kind = bool | None if not item.metavar else list[str] | None if item.is_list else str | None
        declared = typer.Option(
            f"{item.flag}/--no-{_name(item).replace('_', '-')}" if not item.metavar else item.flag,
            help=f"{item.help}." + (f"  [{'; '.join(notes)}]" if notes else ""),
            metavar=item.metavar or None,
            envvar=item.envvar,
            rich_help_panel=item.panel,
            show_default=False,
            parser=None if not item.metavar else _unchanged,
        )
        parameters.append(
            inspect.Parameter(
                _name(item),
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[kind, declared],
            )
        )

    def fields(**values: Any) -> None: ...

    fields.__dict__["__signature__"] = inspect.Signature(parameters)
    fields.__annotations__ = {item.name: item.annotation for item in parameters}
    app = typer.Typer(add_completion=False)
    app.command()(fields)
    return list(typer.main.get_command(app).params)  # type: ignore[arg-type]


def _unchanged(value: Any) -> Any:
    return value


def _ordered(parameters: list[Any]) -> list[Any]:
    by_name = {item.name: item for item in parameters}
    # Few isoFLOP sweeps list their sizes.
    less = {"n_params"} if "budgets" in by_name else set()
    first = [by_name[name] for name in FIRST if name in by_name and name not in less][:N_FIRST]
    first = first if len(first) == N_FIRST else []
    for item in first:
        item.rich_help_panel = MOST_USED
    order = {panel: rank for rank, panel in enumerate((MOST_USED, *PANELS))}

    def rank(item: Any) -> int:
        panel = getattr(item, "rich_help_panel", None)
        if item.param_type_name == "argument":
            return -1
        return len(order) + (panel in (None, LAST_PANEL)) if panel not in order else order[panel]

    rest = [item for item in parameters if item not in first]
    return [*first, *sorted(rest, key=rank)]
