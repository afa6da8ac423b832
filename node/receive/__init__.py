"""Receives: C-STORE to the durable spool, nothing acknowledged that is not durable."""

from __future__ import annotations

from node.receive.server import Load, Receiver

__all__ = ["Load", "Receiver"]
