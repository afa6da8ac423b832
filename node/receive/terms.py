"""On what terms associations are accepted and instances stored: one frozen snapshot of the configuration.

An association that is open when the configuration changes goes on; each C-STORE is judged by the terms of the
moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from node.config.schema import Config, NodeSettings
from node.config.snapshot import forwarding
from node.receive.contexts import Contexts
from node.store.originals import Forward

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """In force at one moment.

    ``refuse_below``, ``reject_below`` and ``max_instance`` are bytes; ``forward`` names the destinations that get
    originals.
    """

    node: NodeSettings
    contexts: Contexts
    refuse_below: int
    reject_below: int
    max_instance: int
    duplicates: Literal["keep_first", "replace"]
    forward: Forward


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
_NO_CONTEXT = Rejection(result=1, source=1, reason=2, because="application context name not supported")
_NOT_CALLED = Rejection(result=1, source=1, reason=7, because="called AE title not recognized")
_NOT_KNOWN = Rejection(result=1, source=1, reason=3, because="calling AE title not known at this address")


def terms(config: Config, contexts: Contexts | None = None) -> Terms:
    """The terms that a configuration sets; ``contexts`` spares making them when they did not change."""
    node = config.node
    soft = config.store.reject_below
    allowed = None if node.transfer_syntaxes == "any" else node.transfer_syntaxes
    return Terms(
        node=node,
        contexts=contexts or Contexts(node.private_classes, allowed),
        refuse_below=config.store.refuse_below,
        reject_below=config.store.refuse_below * 5 // 4 if soft is None else soft,
        max_instance=node.max_instance,
        duplicates=config.store.duplicates,
        forward=forwarding(config),
    )


def admit(
    node: NodeSettings, *, calling_ae: str, called_ae: str, address: str, context: str
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
    """
    if context != APPLICATION_CONTEXT:
        return _NO_CONTEXT
    if node.require_called_ae and called_ae != node.ae_title.strip(" "):
        return _NOT_CALLED
    if not node.peer(calling_ae, address):
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
