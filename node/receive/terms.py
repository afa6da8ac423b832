"""On what terms associations are accepted and instances stored: one frozen snapshot of the configuration.

An association that is open when the configuration changes goes on; each C-STORE is judged by the terms of the
moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from node.config.schema import Config, DimseDestination, NodeSettings
from node.config.snapshot import forwarding
from node.model import Promise
from node.receive.contexts import Contexts
from node.store.originals import Forward

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """In force at one moment.

    ``refuse_below``, ``reject_below`` and ``max_instance`` are bytes; ``forward`` names the destinations that get
    originals. ``promise`` is what a storage commitment means, None where it is not offered; ``listeners`` are the
    settings of destinations by AE title; ``committers`` are the AE titles of those that are asked to commit.
    """

    node: NodeSettings
    contexts: Contexts
    refuse_below: int
    reject_below: int
    max_instance: int
    duplicates: Literal["keep_first", "replace"]
    forward: Forward
    promise: Promise | None
    listeners: Mapping[str, Mapping[str, Any]]
    committers: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Result, source and reason of an A-ASSOCIATE-RJ (PS3.8 9.3.4), and why in words."""

    result: int
    source: int
    reason: int
    because: str


BUSY = Rejection(result=2, source=3, reason=2, because="too many associations")
BUSY_ADDRESS = Rejection(result=2, source=3, reason=2, because="too many associations from this address")
BUSY_TITLE = Rejection(result=2, source=3, reason=2, because="too many associations by this AE title")
NO_SPACE = Rejection(result=2, source=3, reason=2, because="out of space")
STOPPING = Rejection(result=2, source=3, reason=1, because="the node is stopping")
CALLED_NONE = Rejection(result=1, source=1, reason=7, because="called AE title is none (PS3.5 6.2)")
CALLING_NONE = Rejection(result=1, source=1, reason=3, because="calling AE title is none (PS3.5 6.2)")
NO_TITLE: Final[Mapping[str, Rejection]] = {"called": CALLED_NONE, "calling": CALLING_NONE}
_NO_CONTEXT = Rejection(result=1, source=1, reason=2, because="application context name not supported")
_NOT_CALLED = Rejection(result=1, source=1, reason=7, because="called AE title not recognized")
_NOT_KNOWN = Rejection(result=1, source=1, reason=3, because="calling AE title not known at this address")


def terms(config: Config, contexts: Contexts | None = None) -> Terms:
    """The terms that a configuration sets; ``contexts`` spares making them when they did not change."""
    node = config.node
    soft = config.store.reject_below
    allowed = None if node.transfer_syntaxes == "any" else node.transfer_syntaxes
    promise = _promise(config)
    dimse = [each for each in config.destinations.values() if each.kind == "dimse"]
    committers = frozenset(each.ae_title.strip(" ") for each in dimse if each.commit)
    offered = promise is not None, bool(committers)
    if contexts is None or (contexts.commitment, contexts.reports) != offered:
        contexts = Contexts(node.private_classes, allowed, commitment=offered[0], reports=offered[1])
    return Terms(
        node=node,
        contexts=contexts,
        refuse_below=config.store.refuse_below,
        reject_below=config.store.refuse_below * 5 // 4 if soft is None else soft,
        max_instance=node.max_instance,
        duplicates=config.store.duplicates,
        forward=forwarding(config),
        promise=promise,
        listeners={each.ae_title.strip(" "): each.model_dump(mode="json", by_alias=True) for each in dimse},
        committers=committers,
    )


def _promise(config: Config) -> Promise | None:
    asked = config.node.commitment.promise
    if asked == "off":
        return None
    return "kept" if asked == "held" and config.store.keep.received is None else asked


def report_to(terms: Terms, *, calling_ae: str, called_ae: str, address: str) -> dict[str, Any] | None:
    """Where a peer that asks for storage commitment listens for the result, as a destination's settings.

    Its own entry says so, or there is a destination with its AE title; else None. We call there by the title that it
    called us by: that is how a modality knows whose answer it is (dcm4chee-arc-light #3592).
    """
    node = terms.node
    if node.accept_from != "any":
        for entry in node.accept_from:
            if entry.ae_title == calling_ae and entry.admits(address) and entry.report_to is not None:
                there = entry.report_to
                told = DimseDestination(
                    ae_title=there.ae_title or calling_ae,
                    address=there.address,
                    calling_ae=called_ae,
                    tls=there.tls,
                )
                return told.model_dump(mode="json", by_alias=True)
    found = terms.listeners.get(calling_ae)
    return {**found, "calling_ae": called_ae} if found is not None else None


def pinned(node: NodeSettings, calling_ae: str, address: str) -> bool:
    """Whether it is the configuration that says that whoever calls by this title from there is this peer."""
    if node.accept_from == "any":
        return False
    return any(e.ae_title == calling_ae and bool(e.addresses) and e.admits(address) for e in node.accept_from)


def admit(
    node: NodeSettings, *, calling_ae: str, called_ae: str, address: str, context: str, tells: bool = False
) -> Rejection | None:
    """Whether a peer may associate; None if so.

    Parameters
    ----------
    node
        The settings in force.
    calling_ae, called_ae
        AE titles of the request, padding removed.
    address
        The peer's IP address.
    context
        Application Context Name of the request.
    tells
        It is a destination that calls with nothing but results of storage commitment: it need not be listed, for
        it can do nothing here without a Transaction UID that only the one who was asked knows.
    """
    if context != APPLICATION_CONTEXT:
        return _NO_CONTEXT
    if node.require_called_ae and called_ae != node.ae_title.strip(" "):
        return _NOT_CALLED
    if not tells and not node.peer(calling_ae, address):
        return _NOT_KNOWN
    return None


def seats(node: NodeSettings, calling_ae: str, address: str) -> int | None:
    """How many associations may call by this AE title at once; None if as many as their addresses may have.

    A title that is listed more than once has the number of the first entry that admits this address.
    """
    if node.accept_from == "any":
        return None
    found = (e for e in node.accept_from if e.ae_title == calling_ae and e.admits(address))
    return next((entry.max_associations for entry in found), None)
