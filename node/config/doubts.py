"""What is allowed and probably not meant, in a configuration without a fault."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from node.config.checks import Finding
from node.config.conditions import Condition, Sort
from node.config.masks import has_password
from node.config.schema import Config, DimseDestination, FolderDestination, Rule
from node.config.tree import Node
from node.config.values import did_you_mean, quote

RECOVERED = "RECOVERED"
"""Who sent what was found in the spool without a record."""


def doubts(config: Config, root: Node, catalogue: Collection[str] | None = None) -> Iterator[Finding]:
    """Findings that are warnings.

    Parameters
    ----------
    config, root
        The configuration and its file.
    catalogue
        The installed engines; a mapping tells the modalities of each.
    """
    if config.node.accept_from == "any":
        hint = "for a trial only: list the scanners' AE titles, pinned to their addresses"
        yield _warn(root, ("node", "accept_from"), "every AE title may send from everywhere", hint)
    else:
        for peer in config.node.accept_from:
            if peer.ae_title.casefold() in ("any", "all", "*"):
                message = f"{quote(peer.ae_title)} in a list is an AE title as any other"
                yield _warn(root, ("node", "accept_from"), message, "to let everybody in: accept_from: any")
        pinned = {peer.ae_title for peer in config.node.accept_from if peer.addresses is not None}
        for title in sorted(pinned & {p.ae_title for p in config.node.accept_from if p.addresses is None}):
            message = f"{quote(title)} is pinned to addresses, and stands here without any as well"
            yield _warn(
                root, ("node", "accept_from"), message, "it may call from anywhere: keep one of the two"
            )
    if has_password(_written(root, ("store", "database"))):
        hint = "write ${DB_PASSWORD} in its place"
        yield _warn(root, ("store", "database"), "the password stands in the file", hint)
    for name, destination in config.destinations.items():
        if isinstance(destination, DimseDestination) and _is_self(config, destination):
            yield _warn(root, ("destinations", name), "this destination is the node itself", "name the PACS")
    yield from _paths(config, root)
    for n, rule in enumerate(config.rules):
        yield from _rule(config, root, n, rule, catalogue)


def _paths(config: Config, root: Node) -> Iterator[Finding]:
    named: list[tuple[tuple[str, ...], str]] = [
        (("store", "spool"), config.store.spool),
        (("gpu", "plans"), config.gpu.plans or ""),
    ]
    for name, destination in config.destinations.items():
        if isinstance(destination, FolderDestination):
            named.append((("destinations", name, "path"), destination.path))
    for keys, path in named:
        if path.startswith("~") or "$" in path:
            message = f"{quote(path)} is taken as it is written: a folder of that name"
            yield _warn(root, keys, message, "write the whole path; ${NAME} reads the environment")


def _rule(
    config: Config, root: Node, n: int, rule: Rule, catalogue: Collection[str] | None
) -> Iterator[Finding]:
    node = root.get("rules")
    when = node.items[n].get("when") if node is not None else None
    for keyword, condition in rule.when.items():
        message, hint = _condition(config, condition)
        if message and when is not None:
            there = when.get(keyword) or when
            yield Finding(
                there.line, there.column, f"rules.{n + 1}.when.{keyword}", message, hint, warning=True
            )
    engine = config.engines.get(rule.enhance or "")
    wanted = _wanted(rule)
    if node is None or engine is None or not wanted or not isinstance(catalogue, Mapping):
        return
    made_for: Collection[str] = catalogue.get(engine.engine, ())
    if made_for and not wanted & set(made_for):
        there = node.items[n].get("enhance") or node.items[n]
        message = f"{quote(engine.engine)} is for {' and '.join(made_for)}: all that this rule takes will be rejected"
        hint = f"name an engine for {' or '.join(sorted(wanted))}, or ignore: true"
        yield Finding(there.line, there.column, f"rules.{n + 1}.enhance", message, hint, warning=True)


def _wanted(rule: Rule) -> set[str]:
    """The modalities that a rule names, if it names all that it takes."""
    condition = rule.when.get("Modality")
    if condition is None or condition.negated or any(t.operator != "equals" for t in condition.tests):
        return set()
    return {test.operand.upper() for test in condition.tests}


def _condition(config: Config, condition: Condition) -> tuple[str, str]:
    """(what is doubtful, what to do) about a condition that is well-formed; twice "" if nothing is."""
    if condition.negated:
        return "", ""
    said = [test.operand for test in condition.tests if test.operator == "equals"]
    if condition.keyword == "CallingAE" and config.node.accept_from != "any":
        known = [peer.ae_title for peer in config.node.accept_from]
        strangers = [title for title in said if title not in (*known, RECOVERED)]
        if strangers:
            hint = did_you_mean(strangers[0], known, "add it there, or mend its spelling; case matters")
            return f"{quote(strangers[0])} is not in node.accept_from, so that nobody sends as it", hint
    if condition.keyword == "CalledAE" and config.node.require_called_ae:
        strangers = [title for title in said if title != config.node.ae_title]
        if strangers:
            hint = f"write {config.node.ae_title}, or node.require_called_ae: false"
            return f"{quote(strangers[0])} is not node.ae_title, so that nobody may call it", hint
    if condition.sort in (Sort.TEXT, Sort.CODE):
        stars = [text for text in said if "*" in text or text.startswith("%") or text.endswith("%")]
        if stars:
            bare = stars[0].strip("*%") or "TEXT"
            return (
                f"{quote(stars[0])} has no wildcard: every sign of it stands for itself",
                f"write contains {bare}",
            )
    return "", ""


def _is_self(config: Config, destination: DimseDestination) -> bool:
    local = {"localhost", "127.0.0.1", "::1", config.node.listen.host}
    return destination.port == config.node.listen.port and destination.host in local


def _written(root: Node, keys: tuple[str, ...]) -> str:
    node: Node | None = root
    for key in keys:
        node = node.get(key) if node is not None else None
    return node.written if node is not None else ""


def _warn(root: Node, keys: tuple[str, ...], message: str, hint: str) -> Finding:
    node = root
    for key in keys:
        node = node.get(key) or node
    return Finding(node.line, node.column, ".".join(keys), message, hint, True)


def _place(path: str) -> Path:
    return Path(os.path.realpath(path))  # as Path.resolve, which refuses a loop of links


def folders(config: Config, root: Node) -> Iterator[Finding]:
    """Faults: folders of destinations inside of the spool, where the node sweeps what it does not know."""
    spool = _place(config.store.spool)
    for name, destination in config.destinations.items():
        if not isinstance(destination, FolderDestination):
            continue
        place = _place(destination.path)
        if place == spool or spool in place.parents:
            keys = ("destinations", name, "path")
            found = _warn(root, keys, "this folder lies in store.spool", "name one outside of it")
            yield Finding(found.line, found.column, found.path, found.message, found.hint)
