"""What no single key can be blamed for: references, contradictions, rules that can never match.

Works on the tree of the file, so that it finds its faults, with their places, whatever else is wrong.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from node.config.conditions import Condition
from node.config.grammar import ConditionRefused, doubtful, parse_condition
from node.config.identifiers import why_not
from node.config.tree import Node
from node.config.values import Refused, did_you_mean, duration, host_and_port, quote

SECRET = "the value that the environment gives does not fit"  # noqa: S105 - a message


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault, or a warning, about a node of the file. ``path`` is for people: rules count from 1."""

    line: int
    column: int
    path: str
    message: str
    hint: str = ""
    warning: bool = False


def at(
    node: Node, path: str, message: str, hint: str = "", *, wanted: str = "", warning: bool = False
) -> Finding:
    """A finding about a node; of a secret only ``wanted`` is told."""
    if node.secret:
        message, hint = f"{SECRET} ({quote(node.written)})", wanted
    return Finding(node.line, node.column, path, message, hint, warning)


def conditions(root: Node) -> tuple[dict[int, Mapping[str, Condition]], list[Finding]]:
    """Parse every rule's ``when``; of those without a fault, the conditions by place of the rule."""
    parsed: dict[int, Mapping[str, Condition]] = {}
    findings: list[Finding] = []
    for n, rule in enumerate(_rules(root)):
        when = rule.get("when")
        if when is None or (when.kind == "scalar" and when.value == "any"):
            if when is not None:
                parsed[n] = {}
            continue
        path = f"rules.{n + 1}.when"
        if when.kind != "mapping" or not when.entries:
            message = "`when` is neither `any` nor keywords with conditions"
            findings.append(at(when, path, message, "write when: any, or when: {Modality: CT}"))
            continue
        found: list[Finding] = []
        held: dict[str, Condition] = {}
        for keyword, entry in when.entries.items():
            message, hint = why_not(keyword)
            if message:
                found.append(
                    Finding(entry.line, entry.column, f"{path}.{quote(keyword)[1:-1]}", message, hint)
                )
                continue
            condition = _condition(keyword, entry.node, f"{path}.{keyword}", found)
            if condition is not None:
                held[keyword] = condition
        findings += found
        if len(held) == len(when.entries):
            parsed[n] = held
    return parsed, findings


def _condition(keyword: str, node: Node, path: str, found: list[Finding]) -> Condition | None:
    nulls = [each for each in node.nodes() if each.kind == "scalar" and each.value is None]
    if nulls:
        return None  # reported where values are missing
    try:
        condition = parse_condition(keyword, node.plain())
    except ConditionRefused as refused:
        where = node if refused.item is None else node.items[refused.item]
        found.append(at(where, path, refused.message, refused.hint, wanted=refused.wanted))
        return None
    doubt = doubtful(condition)
    if doubt:
        found.append(at(node, path, doubt, warning=True))
    return condition


def _rules(root: Node) -> list[Node]:
    rules = root.get("rules")
    return rules.items if rules is not None else []


def _is_true(node: Node | None) -> bool:
    return node is not None and node.value is not None and node.value.strip().lower() == "true"


def _names(root: Node, section: str) -> dict[str, Node]:
    node = root.get(section)
    return {key: entry.node for key, entry in node.entries.items()} if node is not None else {}


def cross(
    root: Node, whens: Mapping[int, Mapping[str, Condition]], catalogue: Collection[str] | None
) -> Iterator[Finding]:
    """Findings over several keys.

    Parameters
    ----------
    root
        The whole file.
    whens
        The rules' conditions, as :func:`conditions` gives them.
    catalogue
        Names of the engines that are installed, None if that is not known here.
    """
    engines, destinations = _names(root, "engines"), _names(root, "destinations")
    used_engines: set[str] = set()
    used_destinations: set[str] = set()
    for n, rule in enumerate(_rules(root)):
        if rule.kind != "mapping":
            continue
        path = f"rules.{n + 1}"
        yield from _what_it_does(rule, path)
        engine = rule.get("enhance")
        if engine is not None and engine.value is not None:
            used_engines.add(engine.value)
            yield from _reference(engine, engines, f"{path}.enhance", "engines")
        send_to = rule.get("send_to")
        seen: set[str] = set()
        for item in send_to.items if send_to is not None else []:
            if item.value is None:
                continue
            used_destinations.add(item.value)
            yield from _reference(item, destinations, f"{path}.send_to", "destinations")
            if item.value in seen:
                yield at(item, f"{path}.send_to", f"{quote(item.value)} stands here twice", "name it once")
            seen.add(item.value)
    yield from _order(root, whens)
    yield from _engines(engines, catalogue)
    yield from _timing(root)
    yield from _commitment(root, destinations)
    yield from _monitoring(root)
    for names, used, section in (
        (engines, used_engines, "engines"),
        (destinations, used_destinations, "destinations"),
    ):
        for name, node in names.items():
            if _is_true(node.get("forward_originals")):
                continue
            if name not in used and root.get("rules") is not None:
                yield Finding(node.line, node.column, f"{section}.{name}", "no rule uses this", "", True)
    if not _rules(root):
        yield Finding(
            root.line, root.column, "rules", "there are no rules: every series will be ignored", "", True
        )


def _what_it_does(rule: Node, path: str) -> Iterator[Finding]:
    enhances, ignores = "enhance" in rule.entries, _is_true(rule.get("ignore"))
    if enhances and ignores:
        yield at(
            rule.entries["ignore"].node, path, "the rule both enhances and ignores", "keep one of the two"
        )
    if not enhances and not ignores:
        yield at(
            rule,
            path,
            "the rule does nothing",
            "add enhance: ENGINE with send_to: [DESTINATION], or ignore: true",
        )
    if enhances and "send_to" not in rule.entries:
        yield at(rule, path, "send_to is missing", "say where the derived series goes: send_to: [pacs]")
    send_to = rule.get("send_to")
    if enhances and send_to is not None and send_to.kind == "list" and not send_to.items:
        yield at(send_to, path, "send_to is empty", "say where the derived series goes: send_to: [pacs]")
    for key in ("send_to", "strength"):
        if ignores and not enhances and key in rule.entries:
            entry = rule.entries[key]
            message = f"{key} has no meaning in a rule that ignores"
            yield Finding(entry.line, entry.column, f"{path}.{key}", message, "take the line out")


def _reference(node: Node, names: Mapping[str, Node], path: str, section: str) -> Iterator[Finding]:
    if node.value not in names:
        there = f"there are: {', '.join(names)}"[:120] if names else f"add it under {section}:"
        yield at(
            node,
            path,
            f"{section} has no entry {quote(node.value)}",
            did_you_mean(node.value or "", names, there),
            wanted=there,
        )


def _order(root: Node, whens: Mapping[int, Mapping[str, Condition]]) -> Iterator[Finding]:
    """Duplicate names, and rules that an earlier rule leaves nothing for."""
    names: dict[str, int] = {}
    for n, rule in enumerate(_rules(root)):
        name = rule.get("name")
        if name is not None and name.value is not None:
            if name.value in names:
                other = f"rule {names[name.value] + 1} has it too"
                yield at(name, f"rules.{n + 1}.name", f"the name {quote(name.value)} is not unique", other)
            names.setdefault(name.value, n)
        if n not in whens:
            continue
        for earlier in range(n):
            if earlier in whens and whens[earlier].items() <= whens[n].items():
                line = _rules(root)[earlier].line
                what = "matches every series" if not whens[earlier] else "matches all that this one does"
                message = f"this rule can never be reached: rule {earlier + 1}, in line {line}, {what}"
                yield at(rule, f"rules.{n + 1}", message, "move this rule above it, or take it out")
                break


def _engines(engines: Mapping[str, Node], catalogue: Collection[str] | None) -> Iterator[Finding]:
    for name, node in engines.items():
        engine = node.get("engine")
        if catalogue is not None and engine is not None and engine.value and engine.value not in catalogue:
            there = f"the catalogue has: {', '.join(sorted(catalogue))}"
            hint = did_you_mean(engine.value, catalogue, there)
            message = f"there is no engine {quote(engine.value)}"
            yield at(engine, f"engines.{name}.engine", message, hint, wanted=there)


def _timing(root: Node) -> Iterator[Finding]:
    series = root.get("series")
    quiet, give_up = (
        (series.get("quiet_after"), series.get("give_up_after")) if series is not None else (None, None)
    )
    try:
        quiet_s = duration(quiet.value) if quiet is not None else 30.0
        give_up_s = duration(give_up.value) if give_up is not None else 3600.0
    except Refused:
        return
    node = give_up or quiet
    if node is not None and give_up_s < quiet_s:
        message = "give_up_after is shorter than quiet_after"
        yield at(node, "series", message, "give_up_after is the last resort: make it the longer one")


def _commitment(root: Node, destinations: Mapping[str, Node]) -> Iterator[Finding]:
    """A promise that nothing stands behind: nobody gets the originals, and retention removes them."""
    node = root.get("node")
    section = node.get("commitment") if node is not None and node.kind == "mapping" else None
    promise = section.get("promise") if section is not None and section.kind == "mapping" else None
    if promise is None or promise.value not in ("held", "delivered"):
        return
    if any(
        _is_true(each.get("forward_originals")) for each in destinations.values() if each.kind == "mapping"
    ):
        return
    store = root.get("store")
    keep = store.get("keep") if store is not None and store.kind == "mapping" else None
    received = keep.get("received") if keep is not None and keep.kind == "mapping" else None
    if promise.value == "held" and received is not None and received.value == "forever":
        return
    yield at(
        promise,
        "node.commitment.promise",
        "no destination gets the originals: a scanner that deletes its own would delete the last ones",
        "set forward_originals: true on a destination, or write off",
    )


def _monitoring(root: Node) -> Iterator[Finding]:
    """The pages on the port of the scanners: whichever is there first would keep the other out."""
    here, door = (_below(root, section, "listen") for section in ("monitoring", "node"))
    try:
        port = host_and_port(here.value)[1] if here is not None and here.value else 0
        taken = host_and_port(door.value)[1] if door is not None and door.value else 11112
    except Refused:
        return
    if here is not None and port and port == taken:
        yield at(
            here,
            "monitoring.listen",
            f"port {port} is that of node.listen",
            "give the pages a port of their own",
        )


def _below(root: Node, section: str, key: str) -> Node | None:
    node = root.get(section)
    return node.get(key) if node is not None and node.kind == "mapping" else None
