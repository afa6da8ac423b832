"""What every key means: for ``luminode config explain``, docs/configuration.md and editors.

All of it comes from the field descriptions of the schema; there is no second place to keep in step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic_core import PydanticUndefined

from node.config import reference
from node.config.identifiers import DIRECT_IDENTIFIERS, PSEUDO
from node.config.operators import EXAMPLES
from node.config.schema import KINDS, Config
from node.config.values import Refused, did_you_mean, quote
from node.config.walk import Key, type_text, walk


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyDoc:
    """The documentation of one key.

    ``path`` leaves out names that an admin chooses and places in lists: ``engines.strength``,
    ``rules.when``, ``destinations.dimse.address``. ``default`` is as one would write it, empty if the key
    has to be given or has none. ``restart`` is True if a change waits for the node to start again.
    """

    path: str
    type: str
    default: str
    description: str
    required: bool
    restart: bool
    section: bool


@cache
def keys() -> tuple[KeyDoc, ...]:
    """Every key, each section before its keys, in the order of the file."""
    return tuple(_document(key) for key in walk())


def _document(key: Key) -> KeyDoc:
    info = key.field
    kind = type_text(info.annotation, info.metadata)
    extra = info.json_schema_extra
    required = info.is_required() or key.name == "kind"  # the kind tells which section it is
    return KeyDoc(
        path=key.path,
        type=kind,
        default="" if required or key.section else _written(info.default, kind),
        description=info.description or "",
        required=required,
        restart=isinstance(extra, dict) and bool(extra.get("restart")),
        section=key.section,
    )


_TIMES = (("d", 86400.0), ("h", 3600.0), ("m", 60.0), ("s", 1.0))
_SIZES = (("GB", 10**9), ("MiB", 1024**2), ("MB", 10**6), ("KiB", 1024))


def _written(value: Any, kind: str) -> str:
    """A default as one would write it in the file."""
    if value is None or value is PydanticUndefined:
        return "forever" if value is None and "forever" in kind else ""
    if isinstance(value, bool):
        return str(value).lower()
    if "duration" in kind:
        return next(
            (f"{value / each:g}{unit}" for unit, each in _TIMES if value >= each and value % each == 0),
            f"{value:g}s",
        )
    if kind == "size":
        return next((f"{value // each}{unit}" for unit, each in _SIZES if value % each == 0), str(value))
    if isinstance(value, str):
        return f'"{value}"' if value != value.strip() else value
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(str(each) for each in value)}]"
    if isinstance(value, dict):
        return "{}"
    return str(value)


def _parts(path: str) -> list[str]:
    """The parts of a path that the schema knows by name: ``rules[2].when`` is ``rules.when``."""
    plain = path.replace("[", ".").replace("]", "")
    return [part for part in plain.split(".") if part and not part.isdigit()]


def find(path: str) -> tuple[KeyDoc, ...]:
    """The keys that a person means by ``path``.

    Names of entries and kinds may be there or not: ``destinations.pacs.address``,
    ``destinations.address``, ``rules.2.when`` and ``when`` are all understood.

    Raises
    ------
    Refused
        If no key fits, with the nearest one as a hint.
    """
    wanted = _parts(path)
    exact = tuple(doc for doc in keys() if doc.path == ".".join(wanted))
    if exact:
        return exact
    found = [doc for doc in keys() if wanted and _fits(wanted, doc.path.split("."))]
    if found:
        whole = [doc for doc in found if doc.path.split(".")[0] == wanted[0]]
        return tuple(whole or found)
    hint = did_you_mean(path, [doc.path for doc in keys()], "`luminode config explain` lists every key")
    raise Refused(f"there is no key {quote(path)}", hint)


def _fits(wanted: Sequence[str], known: Sequence[str]) -> bool:
    named = [part for part in known if part not in KINDS]
    if wanted[-1] != named[-1]:
        return False
    if len(wanted) == 1:
        return True
    rest = iter(wanted)
    return wanted[0] == named[0] and all(part in rest for part in named)


def explain(path: str) -> str:
    """The documentation of a key as text; of a section, with its keys.

    Raises
    ------
    Refused
        If there is no such key.
    """
    return "\n\n".join(_explained(doc) for doc in find(path))


def _explained(doc: KeyDoc) -> str:
    lines = [doc.path, f"  {doc.description}", f"  type: {doc.type.replace('`', '')}"]
    if doc.required:
        lines.append("  must be given")
    elif doc.default:
        lines.append(f"  default: {doc.default}")
    if doc.restart:
        lines.append("  a change takes effect when the node starts again")
    below = [each for each in keys() if each.path.startswith(f"{doc.path}.")]
    lines += [f"  {each.path}: {each.description}" for each in below]
    if doc.path == "rules.when":
        lines += ["", reference.CONDITIONS.replace("`", ""), "", "  Operators:"]
        lines += [f"    {example}" for example in EXAMPLES.values()]
        lines.append(f"  Besides DICOM keywords: {', '.join(PSEUDO)}")
    return "\n".join(lines)


def json_schema() -> dict[str, Any]:
    """JSON Schema of the file, for editors that complete and check while one types."""
    schema = Config.model_json_schema(mode="validation", by_alias=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "Luminode config.yaml",
    }


def markdown() -> str:
    """docs/configuration.md, whole."""
    tops = [doc for doc in keys() if "." not in doc.path]
    parts = [reference.HEAD, *(_section(top) for top in tops), reference.TAIL]
    identifiers = ", ".join(f"`{each}`" for each in sorted(DIRECT_IDENTIFIERS))
    operators = "\n".join(
        f"| `{example}` | {reference.OPERATORS[word]} |" for word, example in EXAMPLES.items()
    )
    text = "\n\n".join(part.strip() for part in parts)
    return text.replace("@OPERATORS@", operators).replace("@IDENTIFIERS@", identifiers) + "\n"


def _section(top: KeyDoc) -> str:
    rows = [doc for doc in keys() if doc.path.startswith(f"{top.path}.")]
    lines = [
        f"## {top.path}",
        "",
        top.description,
        "",
        "| key | type | default | meaning |",
        "|---|---|---|---|",
    ]
    for doc in rows:
        default = "**required**" if doc.required else f"`{doc.default}`" if doc.default else ""
        restart = " *Takes effect at the next start.*" if doc.restart else ""
        kind = doc.type.replace("|", "\\|")
        lines.append(
            f"| `{doc.path}` | {kind} | {default} | {doc.description.replace('|', chr(92) + '|')}{restart} |"
        )
    if top.path == "rules":
        lines += ["", reference.CONDITIONS, "", "| condition | holds if |", "|---|---|", "@OPERATORS@"]
        lines += ["", reference.ATTRIBUTES]
    return "\n".join(lines)
