"""Regular expressions whose cost grows linearly with pattern and text, whatever both are.

Python's ``re`` backtracks: ``(a+)+$`` on a long description stops a node. Rules therefore use this subset,
run as a set of states (Thompson 1968): ``. ^ $ | ( ) (?: ) [ ] * + ? {m,n}``, ``\\d \\w \\s \\b`` and their
opposites, and a leading ``(?i)``. It has no back references and no look-around. Where it accepts a pattern
it finds what ``re.search`` finds; ``^`` and ``$`` are the ends of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from node.config.values import Refused, quote

MAX_PATTERN = 200
MAX_PROGRAM = 1000
MAX_DEPTH = 16
MAX_TEXT = 256
"""Longest value looked at, in characters. VR LO, the longest that rules see, has at most 64."""

_KINDS: Mapping[str, Callable[[str], bool]] = {
    "d": str.isdecimal,
    "w": lambda c: c.isalnum() or c == "_",
    "s": str.isspace,
}
_UNSUPPORTED = "escapes are \\d \\w \\s \\b, and a backslash before punctuation"


@dataclass(frozen=True, slots=True)
class _Set:
    """One character out of a set: single ranges and kinds ``d w s`` or, negated, ``D W S``."""

    ranges: tuple[tuple[str, str], ...] = ()
    kinds: str = ""
    negated: bool = False

    def has(self, variants: tuple[str, ...]) -> bool:
        return self.negated != any(self._one(c) for c in variants)

    def _one(self, c: str) -> bool:
        if any(low <= c <= high for low, high in self.ranges):
            return True
        return any(_KINDS[kind.lower()](c) != kind.isupper() for kind in self.kinds)


@dataclass(frozen=True, slots=True)
class _Assert:
    kind: str  # one of ^ $ b B


@dataclass(frozen=True, slots=True)
class _Sequence:
    parts: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    parts: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Repeat:
    part: _Node
    least: int
    most: int | None


_Node: TypeAlias = "_Set | _Assert | _Sequence | _Choice | _Repeat"
_Step: TypeAlias = "_Set | _Assert | tuple[int, ...] | None"
"""One step of the program: take a character, assert, go on at one of several steps, or accept (None)."""

_ANY = _Set(ranges=(("\n", "\n"),), negated=True)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A compiled pattern; made by :func:`compile_pattern`."""

    source: str
    fold: bool
    program: tuple[_Step, ...]

    def found_in(self, text: str) -> bool:
        """True if the pattern matches somewhere in ``text``; False if that has over 256 characters."""
        if len(text) > MAX_TEXT:
            return False
        states: set[int] = set()
        for at in range(len(text) + 1):
            states = self._closure(states | {0}, text, at)
            if len(self.program) - 1 in states:
                return True
            if at < len(text):
                variants = _variants(text[at]) if self.fold else (text[at],)
                states = {n + 1 for n in states if isinstance(s := self.program[n], _Set) and s.has(variants)}
        return False

    def _closure(self, states: set[int], text: str, at: int) -> set[int]:
        seen: set[int] = set()
        todo = list(states)
        while todo:
            n = todo.pop()
            if n in seen:
                continue
            seen.add(n)
            step = self.program[n]
            if isinstance(step, tuple):
                todo.extend(step)
            elif isinstance(step, _Assert) and _asserts(step.kind, text, at):
                todo.append(n + 1)
        return seen


def _variants(c: str) -> tuple[str, ...]:
    return tuple({v for v in (c, c.lower(), c.upper()) if len(v) == 1})


def _asserts(kind: str, text: str, at: int) -> bool:
    if kind == "^":
        return at == 0
    if kind == "$":
        return at == len(text)
    word = _KINDS["w"]
    before = at > 0 and word(text[at - 1])
    after = at < len(text) and word(text[at])
    return (before != after) == (kind == "b")


class _Parser:
    """Recursive descent over the pattern; depth and size are capped."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.at = 0
        self.depth = 0

    def peek(self) -> str:
        return self.source[self.at : self.at + 1]

    def take(self) -> str:
        c = self.peek()
        self.at += 1
        return c

    def refuse(self, what: str, hint: str = "") -> Refused:
        return Refused(
            f"the pattern {quote(self.source)} {what} (character {self.at})",
            hint or "put a backslash before a character that stands for itself",
            wanted="a regular expression without back references and look-around",
        )

    def choice(self) -> _Node:
        parts = [self.sequence()]
        while self.peek() == "|":
            self.take()
            parts.append(self.sequence())
        return parts[0] if len(parts) == 1 else _Choice(tuple(parts))

    def sequence(self) -> _Node:
        parts: list[_Node] = []
        while self.peek() not in ("", "|", ")"):
            parts.append(self.repeated())
        return _Sequence(tuple(parts))

    def repeated(self) -> _Node:
        atom = self.atom()
        c = self.peek()
        if c not in ("*", "+", "?", "{"):
            return atom
        if isinstance(atom, _Assert):
            raise self.refuse(f"repeats {atom.kind}, which has no length")
        self.take()
        least, most = self.braces() if c == "{" else {"*": (0, None), "+": (1, None), "?": (0, 1)}[c]
        if self.peek() == "?":
            self.take()  # a lazy quantifier finds the same texts
        if self.peek() in ("*", "+", "?", "{"):
            raise self.refuse("repeats a repetition")
        return _Repeat(atom, least, most)

    def braces(self) -> tuple[int, int | None]:
        inside, closed, _ = self.source[self.at :].partition("}")
        low, comma, high = inside.partition(",")
        if not closed or not _digits(low or "0") or not _digits(high or "0") or inside in ("", ","):
            raise self.refuse("has { without a number of repetitions", "write {2} or {2,4}, or \\{")
        self.at += len(inside) + 1
        least = int(low or "0")
        most = (int(high) if high else None) if comma else least
        if most is not None and most < least:
            raise self.refuse("repeats at most less often than at least")
        return least, most

    def atom(self) -> _Node:
        c = self.take()
        if c == "(":
            return self.group()
        if c == "[":
            return self.bracket()
        if c == ".":
            return _ANY
        if c in ("^", "$"):
            return _Assert(c)
        if c == "\\":
            if self.peek() in ("b", "B"):
                return _Assert(self.take())
            return self.escape()
        if c in ("*", "+", "?", "{"):
            raise self.refuse(f"has {c} with nothing before it to repeat")
        return _Set(ranges=((c, c),))

    def group(self) -> _Node:
        if self.peek() == "?":
            if self.source[self.at : self.at + 2] != "?:":
                raise self.refuse("uses a group that is not supported", "groups are ( ) and (?: )")
            self.at += 2
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.refuse("has too many groups inside each other")
        inside = self.choice()
        if self.take() != ")":
            raise self.refuse("has ( without )")
        self.depth -= 1
        return inside

    def escape(self) -> _Set:
        c = self.take()
        if c and c.lower() in _KINDS:
            return _Set(kinds=c)
        if not c or c.isalnum():
            raise self.refuse(f"has the escape \\{c}, which is not supported", _UNSUPPORTED)
        return _Set(ranges=((c, c),))

    def bracket(self) -> _Set:
        negated = self.peek() == "^"
        if negated:
            self.take()
        ranges: list[tuple[str, str]] = []
        kinds = ""
        first = True
        while first or self.peek() != "]":
            first = False
            one = self.member()
            if self.peek() == "-" and self.source[self.at + 1 : self.at + 2] not in ("]", ""):
                self.take()
                other = self.member()
                if one.kinds or other.kinds or other.ranges[0][0] < one.ranges[0][0]:
                    raise self.refuse(
                        "has a range that goes nowhere", "write the smaller end first, as in [a-z]"
                    )
                ranges.append((one.ranges[0][0], other.ranges[0][0]))
            else:
                ranges.extend(one.ranges)
                kinds += one.kinds
        self.take()
        return _Set(ranges=tuple(ranges), kinds=kinds, negated=negated)

    def member(self) -> _Set:
        c = self.take()
        if not c:
            raise self.refuse("has [ without ]")
        return self.escape() if c == "\\" else _Set(ranges=((c, c),))


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 3


class _Emitter:
    def __init__(self, source: str) -> None:
        self.source = source
        self.program: list[_Step] = []
        self.work = 0

    def add(self, step: _Step) -> int:
        self.program.append(step)
        return len(self.program) - 1

    def emit(self, node: _Node) -> None:
        self.work += 1  # apart from the program: (){999} makes no step but is work all the same
        if max(self.work, len(self.program)) >= MAX_PROGRAM:
            raise Refused(
                f"the pattern {quote(self.source)} is too large once its repetitions are written out",
                "use smaller numbers in { }",
                wanted="a smaller pattern",
            )
        if isinstance(node, (_Set, _Assert)):
            self.add(node)
        elif isinstance(node, _Sequence):
            for part in node.parts:
                self.emit(part)
        elif isinstance(node, _Choice):
            self.choice(node)
        else:
            self.repeat(node)

    def choice(self, node: _Choice) -> None:
        ends: list[int] = []
        fork = self.add(())
        starts: list[int] = []
        for part in node.parts:
            starts.append(len(self.program))
            self.emit(part)
            ends.append(self.add(()))
        self.program[fork] = tuple(starts)
        for end in ends:
            self.program[end] = (len(self.program),)

    def repeat(self, node: _Repeat) -> None:
        for _ in range(node.least):
            self.emit(node.part)
        if node.most is None:
            fork = self.add(())
            self.emit(node.part)
            self.add((fork,))
            self.program[fork] = (fork + 1, len(self.program))
            return
        forks: list[int] = []
        for _ in range(node.most - node.least):
            forks.append(self.add(()))
            self.emit(node.part)
        for fork in forks:
            self.program[fork] = (fork + 1, len(self.program))


def compile_pattern(source: str, *, fold: bool = False) -> Pattern:
    """Compile a pattern.

    Parameters
    ----------
    source
        The pattern, at most 200 characters.
    fold
        Ignore case; a leading ``(?i)`` does so too.

    Raises
    ------
    Refused
        If the pattern is faulty, too large or outside the subset.
    """
    if not source:
        raise Refused("the pattern is empty", "write a regular expression, or use `present`")
    if len(source) > MAX_PATTERN:
        raise Refused(f"the pattern has {len(source)} characters", f"at most {MAX_PATTERN} are allowed")
    body = source.removeprefix("(?i)")
    parser = _Parser(body)
    tree = parser.choice()
    if parser.peek():
        raise parser.refuse("has ) without (")
    emitter = _Emitter(body)
    emitter.emit(tree)
    emitter.add(None)
    return Pattern(source=source, fold=fold or body != source, program=tuple(emitter.program))
