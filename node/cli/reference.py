"""docs/cli.md, made from the verbs themselves: ``python -m node.cli.reference > docs/cli.md``.

Verbs, arguments and options come from the signatures that typer reads; there is no second place to keep in step.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import typer
from typer.models import ArgumentInfo, OptionInfo

from node.cli import app
from node.cli.examples import EXAMPLES, MORE, STATUS_1

HEAD = """
# Command line

<!-- Generated from the verbs: `python -m node.cli.reference > docs/cli.md`. Do not edit. -->

`luminode --help` lists the verbs, `luminode VERB --help` its options, `luminode --version` tells which version
this is, and the schema of its database. `python -m node` is the same command.

Verbs that need the configuration take `--config FILE` (`-c`), otherwise the file that the environment variable
`LUMINODE_CONFIG` names, otherwise `./config.yaml`. Relative paths in it start at the working directory: use the
verbs where the node runs, as the user that it runs as.

`--json` prints JSON and nothing else on standard output. Lists are one row a line, newest first. What came over
the network is shown without control characters. Logs, progress and errors go to standard error.

## Exit status

| status | means |
|---|---|
| 0 | done, and what was asked about is well |
| 1 | it did not work, or what was asked about is not well: see each verb. An error says what to do about it |
| 2 | the command line is wrong |
| 78 | config.yaml is wrong or not there: every fault at once, as `file:line:column: key: fault (what to do)` |
| 130 | Ctrl-C |
"""

_TYPES: dict[Any, str] = {Path: "PATH", int: "N", float: "X", str: "TEXT"}
_ELSEWHERE = ("config", "json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """An argument (``declared`` is its name in capitals) or an option of a verb."""

    name: str
    declared: tuple[str, ...]
    value: str
    help: str
    default: str
    option: bool
    required: bool
    many: bool

    @property
    def usage(self) -> str:
        """As it stands in the line of usage."""
        said = f"{self.declared[0]} {self.value}".strip()
        return f"{said if self.required else f'[{said}]'}{'...' if self.many else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """A verb: ``name`` as it is typed, ``series list``."""

    name: str
    help: str
    parameters: tuple[Parameter, ...]


def verbs() -> tuple[Verb, ...]:
    """Every verb of the command line, those without a group first."""
    return tuple(_verbs(app, ""))


def _verbs(typed: typer.Typer, prefix: str) -> Iterator[Verb]:
    for command in typed.registered_commands:
        assert command.callback is not None
        assert command.name is not None
        text = inspect.getdoc(command.callback) or ""
        yield Verb(name=prefix + command.name, help=text, parameters=_parameters(command.callback))
    for group in typed.registered_groups:
        assert group.typer_instance is not None
        yield from _verbs(group.typer_instance, f"{prefix}{group.name} ")


def _parameters(callback: Callable[..., Any]) -> tuple[Parameter, ...]:
    hints = typing.get_type_hints(callback, include_extras=True)
    found = [
        _parameter(name, hints[name], p.default) for name, p in inspect.signature(callback).parameters.items()
    ]
    return tuple(sorted(found, key=lambda p: p.option))  # arguments first, as one types them


def _parameter(name: str, annotated: Any, default: Any) -> Parameter:
    kind, info = typing.get_args(annotated)[:2]
    assert isinstance(info, (ArgumentInfo, OptionInfo)), name
    kind = next((k for k in typing.get_args(kind) if k is not type(None)), kind) if _optional(kind) else kind
    many = typing.get_origin(kind) is list
    of = typing.get_args(kind)[0] if many else kind
    option = isinstance(info, OptionInfo)
    required = default is inspect.Parameter.empty
    return Parameter(
        name=name,
        declared=_declared(info) or (f"--{name}",) if option else (name.upper(),),
        value="" if of is bool or not option else _TYPES[of],
        help=_told(info),
        default="" if required or default in (None, False, "") else _written(default),
        option=option,
        required=required,
        many=many,
    )


def _declared(info: ArgumentInfo | OptionInfo) -> tuple[str, ...]:
    """``--state``, ``-s``; typer keeps the first in ``default`` where the option is in an annotation."""
    first = (info.default,) if isinstance(info.default, str) else ()
    return (*first, *(info.param_decls or ()))


def _optional(kind: Any) -> bool:
    return type(None) in typing.get_args(kind)


def _told(info: ArgumentInfo | OptionInfo) -> str:
    least, most = info.min, info.max
    bounds = f" {least:g} to {most:g}." if least is not None and most is not None else ""
    return f"{info.help or ''}{bounds}".strip()


def _written(default: Any) -> str:
    return str(default.value if isinstance(default, Enum) else default)


def markdown() -> str:
    """docs/cli.md, whole."""
    sections = ("\n\n".join(_section(verb)) for verb in verbs())
    return "\n\n".join((HEAD.strip(), *sections)) + "\n"


def _section(verb: Verb) -> Iterator[str]:
    yield f"## luminode {verb.name}"
    yield verb.help
    yield f"    luminode {verb.name} {' '.join(p.usage for p in verb.parameters)}".rstrip()
    if verb.name in MORE:
        yield MORE[verb.name].strip()
    own = [p for p in verb.parameters if p.name not in _ELSEWHERE]
    if own:
        yield "\n".join(_table(own))
    yield f"```console\n{EXAMPLES[verb.name].strip()}\n```"
    if verb.name in STATUS_1:
        yield f"Exit status 1: {STATUS_1[verb.name]}."


def _table(parameters: Sequence[Parameter]) -> Iterator[str]:
    yield "| | meaning | default |"
    yield "|---|---|---|"
    for p in parameters:
        said = ", ".join(f"`{d}`" for d in p.declared)
        default = "**required**" if p.required else f"`{p.default}`" if p.default else ""
        yield f"| {said} | {p.help.replace('|', chr(92) + '|')} | {default} |"


if __name__ == "__main__":
    typer.echo(markdown(), nl=False)
