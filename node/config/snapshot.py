"""Destinations as they are recorded with queued work, which keeps them whatever becomes of config.yaml."""

from __future__ import annotations

from typing import Any

from node.config.schema import Config, Destination


def snapshot(destination: Destination, config: Config) -> dict[str, Any]:
    """A destination's settings as JSON, with our AE title where they name none."""
    told: dict[str, Any] = destination.model_dump(mode="json", by_alias=True)
    if destination.kind == "dimse" and not told.get("calling_ae"):
        told["calling_ae"] = config.node.ae_title
    return told


def forwarding(config: Config) -> dict[str, dict[str, Any]]:
    """The destinations that get the originals of everything received: name -> settings."""
    return {
        name: snapshot(destination, config)
        for name, destination in config.destinations.items()
        if destination.forward_originals
    }
