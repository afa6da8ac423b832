"""YAML text to a tree of nodes, each with its line and column, every scalar as the text that was written.

ruamel.yaml reads the syntax (YAML 1.2); what it would make of plain scalars is not asked, so ``NO``,
``012``, ``1e3``, ``0x1F`` and ``2024-01-01`` stay text and the schema decides. Bounded in size, depth and
number of nodes with aliases expanded, so that no file can exhaust the node that watches it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from node.config.masks import mask_more
from node.config.syntax import explain_syntax, tabs
from node.config.values import legible, quote
from node.errors import ConfigFault

MAX_CHARACTERS = 256 * 1024
MAX_DEPTH = 24
MAX_NODES = 50_000

_ENV = re.compile(r"\$\$\{|\$\{([^{}]*)\}?")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_NULLS = ("", "~", "null", "Null", "NULL")


@dataclass(slots=True)
class Node:
    """One value of the file.

    ``value`` is a scalar's text after ``${NAME}`` was filled in, None for an empty one; ``written`` is what
    the file says, which is what people are shown when ``secret``, that is, when the environment had a part
    in it. Lines and columns count from 1.
    """

    kind: Literal["mapping", "list", "scalar"]
    line: int
    column: int
    value: str | None = None
    written: str = ""
    secret: bool = False
    items: list[Node] = field(default_factory=list)
    entries: dict[str, Entry] = field(default_factory=dict)

    def nodes(self) -> Iterator[Node]:
        """This node and all below it."""
        todo = [self]
        while todo:
            node = todo.pop()
            yield node
            todo.extend(node.items)
            todo.extend(entry.node for entry in node.entries.values())

    def depth(self) -> int:
        """Levels of collections, this node included; 0 for a scalar. Bounded by MAX_DEPTH."""
        if self.kind == "scalar":
            return 0
        below = [*self.items, *(entry.node for entry in self.entries.values())]
        return 1 + max((node.depth() for node in below), default=0)

    def get(self, key: str) -> Node | None:
        """The value of a key; None if there is none, or if this is no mapping."""
        entry = self.entries.get(key)
        return entry.node if entry is not None else None

    def plain(self) -> Any:
        """As dicts, lists, texts and None."""
        if self.kind == "mapping":
            return {key: entry.node.plain() for key, entry in self.entries.items()}
        return [item.plain() for item in self.items] if self.kind == "list" else self.value


@dataclass(slots=True)
class Entry:
    """A key of a mapping, where it stands, and its value."""

    line: int
    column: int
    node: Node


class _Stop(Exception):
    pass


@dataclass(slots=True)
class _Open:
    """A collection whose end has not been read; ``key`` is set while a mapping waits for a value."""

    node: Node
    anchor: str | None
    key: tuple[str, int, int] | None = None


class _Builder:
    def __init__(self, file: str, env: Mapping[str, str]) -> None:
        self.file = file
        self.env = env
        self.faults: list[ConfigFault] = []
        self.root: Node | None = None
        self.open: list[_Open] = []
        self.anchors: dict[str, tuple[Node, int, int]] = {}
        self.n_nodes = 0
        self.n_documents = 0

    def fault(self, line: int, column: int, message: str, hint: str = "") -> None:
        parts = [
            str(len(o.node.items) + (o is self.open[-1])) if o.key is None else o.key[0] for o in self.open
        ]
        path = ".".join(
            part for part, o in zip(parts, self.open, strict=True) if o.key or o.node.kind == "list"
        )
        self.faults.append(
            ConfigFault(
                file=self.file,
                line=line,
                column=column,
                path=legible(mask_more(path)),
                message=legible(mask_more(message)),
                hint=legible(mask_more(hint)),
            )
        )

    def stop(self, line: int, column: int, message: str, hint: str) -> _Stop:
        self.fault(line, column, message, hint)
        return _Stop()

    def feed(self, event: Any) -> None:
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        if isinstance(event, DocumentStartEvent):
            self.n_documents += 1
            if self.n_documents > 1:
                raise self.stop(line, column, "a second document begins here", "take the line --- out")
        elif isinstance(event, (MappingEndEvent, SequenceEndEvent)):
            self.end()
        elif isinstance(event, AliasEvent):
            self.alias(event.anchor, line, column)
        elif isinstance(event, ScalarEvent):
            self.tag(event, line, column)
            self.scalar(event, line, column)
        elif isinstance(event, (MappingStartEvent, SequenceStartEvent)):
            self.tag(event, line, column)
            mapping = isinstance(event, MappingStartEvent)
            node = Node("mapping" if mapping else "list", line, column)
            if len(self.open) >= MAX_DEPTH:
                raise self.stop(line, column, f"more than {MAX_DEPTH} levels inside each other", "flatten it")
            self.place(node, None, opened=True)
            self.open.append(_Open(node, event.anchor))

    def tag(self, event: Any, line: int, column: int) -> None:
        tag = str(event.tag) if event.tag is not None else ""
        if tag and tag not in ("!", "tag:yaml.org,2002:str"):
            word = tag.removeprefix("!").removeprefix("tag:yaml.org,2002:")
            hint = f"to deny a value write `not {word}`" if tag[:1] == "!" else "take it out"
            self.fault(line, column, f"{quote(tag)} is a YAML tag, which is not used here", hint)

    def scalar(self, event: Any, line: int, column: int) -> None:
        written = str(event.value)
        plain = event.style is None
        node = Node("scalar", line, column, written=written)
        if plain and written in _NULLS:
            node.value = None
        elif self._is_key():
            node.value = written
        else:
            node.value = self.fill_in(node, written)
        self.place(node, event.anchor)

    def _is_key(self) -> bool:
        return bool(self.open) and self.open[-1].node.kind == "mapping" and self.open[-1].key is None

    def fill_in(self, node: Node, written: str) -> str:
        """Put values of the environment in place of ``${NAME}``; ``$${`` stands for ``${``."""

        def value(found: re.Match[str]) -> str:
            if found[0] == "$${":
                return "${"
            name = found[1]
            node.secret = True
            if not _ENV_NAME.fullmatch(name) or not found[0].endswith("}"):
                self.fault(
                    node.line,
                    node.column,
                    f"{quote(found[0])} names no environment variable",
                    "write ${NAME}; defaults are not supported; $${ stands for ${ itself",
                )
                return ""
            if name not in self.env:
                self.fault(
                    node.line,
                    node.column,
                    f"the environment has no variable {name}",
                    f"set {name} where the node is started, for example in its systemd unit",
                )
                return ""
            return self.env[name]

        return _ENV.sub(value, written)

    def alias(self, anchor: str, line: int, column: int) -> None:
        known = self.anchors.get(anchor)
        if known is None:
            inside = any(o.anchor == anchor for o in self.open)
            what = "stands inside what it repeats" if inside else "repeats nothing: there is no such anchor"
            word = anchor.strip("*")[:60]
            hint = f"a text that begins with * stands in quotes; to look for a part write: contains {word}"
            self.fault(line, column, f"{quote(f'*{anchor}')} is a YAML alias that {what}", hint)
            self.place(Node("scalar", line, column, value="", written=f"*{anchor}", secret=True), None)
            return
        node, size, depth = known
        if len(self.open) + depth > MAX_DEPTH:
            raise self.stop(line, column, f"more than {MAX_DEPTH} levels inside each other", "flatten it")
        self.place(node, None, size=size)

    def place(self, node: Node, anchor: str | None, *, size: int = 1, opened: bool = False) -> None:
        self.n_nodes += size
        if self.n_nodes > MAX_NODES:
            where = f"more than {MAX_NODES} values, aliases written out"
            raise self.stop(node.line, node.column, where, "a configuration is smaller than this")
        if anchor is not None:
            self.anchors[anchor] = (node, 1, 0)
        if not self.open:
            self.root = node
            return
        top = self.open[-1]
        if top.node.kind == "list":
            top.node.items.append(node)
        elif top.key is None:
            top.key = self.key(node)
        else:
            key, line, column = top.key
            first = top.node.entries.get(key)
            if first is not None:
                self.fault(
                    line,
                    column,
                    f"{quote(key)} stands here a second time",
                    f"the first is in line {first.line}",
                )
            else:
                top.node.entries[key] = Entry(line, column, node)
            if not opened:
                top.key = None

    def key(self, node: Node) -> tuple[str, int, int]:
        if node.kind != "scalar" or node.value is None:
            raise self.stop(node.line, node.column, "a key is a word", "write key: value")
        if node.value == "<<":
            self.fault(node.line, node.column, "merge keys (<<) are not supported", "write the keys out")
        return node.value, node.line, node.column

    def end(self) -> None:
        done = self.open.pop()
        if done.anchor is not None:
            self.anchors[done.anchor] = (done.node, sum(1 for _ in done.node.nodes()), done.node.depth())
        if self.open and self.open[-1].node.kind == "mapping":
            self.open[-1].key = None


def read_tree(text: str, file: str, env: Mapping[str, str]) -> tuple[Node | None, list[ConfigFault]]:
    """Read YAML.

    Parameters
    ----------
    text
        The whole file.
    file
        Its name, for faults.
    env
        What ``${NAME}`` may name.

    Returns
    -------
    tuple
        The root, None if there is none or its syntax is broken, and all faults found.
    """
    builder = _Builder(file, env)
    if len(text) > MAX_CHARACTERS:
        builder.fault(0, 0, f"the file has more than {MAX_CHARACTERS} characters", "is this the right file?")
        return None, builder.faults
    last = (1, 1)
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            builder.feed(event)
            last = (event.end_mark.line + 1, event.end_mark.column + 1)
    except _Stop:
        return None, builder.faults
    except MarkedYAMLError as error:
        builder.open.clear()
        line, column, message, hint = explain_syntax(error)
        builder.fault(line, column, message, hint)
        for at in tabs(text) if "tab" in message else ():
            if at != (line, column):
                builder.fault(*at, message, hint)
        return None, builder.faults
    except ReaderError as error:
        before = text[: error.position]
        column = error.position - (before.rfind("\n") + 1) + 1
        builder.open.clear()
        what = f"a character that YAML does not allow: U+{int(error.character):04X}"
        builder.fault(before.count("\n") + 1, column, what, "delete it; is the file saved as UTF-8 text?")
        return None, builder.faults
    except Exception:  # ruamel.yaml raises assorted errors on hostile escapes and directives
        builder.open.clear()
        builder.fault(
            *last, "this cannot be read as YAML", "look at the text that follows, at escapes above all"
        )
        return None, builder.faults
    return builder.root, builder.faults
