"""Kinds of destination by name: the one place to add one.

A new kind is a module with a class like :class:`node.deliver.destination.Destination`, a member of the union
in config/schema.py, and a line in :data:`KINDS`. DICOMweb (STOW-RS) comes this way. Storage commitment is a
property of a kind and not a kind: a delivery is SENT when every instance is held by the word of its C-STORE
response, and COMMITTED when the destination has committed to them (pledges.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from node.config.schema import DimseDestination, FolderDestination
from node.deliver.destination import Destination
from node.deliver.dimse import Dimse
from node.deliver.folder import Folder
from node.errors import DeliveryError

KINDS: Mapping[str, tuple[type[BaseModel], Callable[[Any, str], Destination]]] = {
    "dimse": (DimseDestination, Dimse),
    "folder": (FolderDestination, lambda settings, _calling_ae: Folder(settings)),
}
"""kind -> (its settings, how to make it from settings and our AE title)."""


class UnknownDestination(DeliveryError):
    """The settings recorded for a delivery make no sense to this release."""


def settings_of(recorded: Mapping[str, Any]) -> Any:
    """The settings of a delivery as they were recorded when its series was routed.

    Keys that this release does not know are left out: work queued by another release still goes where it was
    meant to go.

    Raises
    ------
    UnknownDestination
        If the kind is unknown, or what is left is not complete.
    """
    kind = str(recorded.get("kind", ""))
    if kind not in KINDS:
        raise UnknownDestination(f"there is no kind of destination {kind!r} in this release")
    model, _ = KINDS[kind]
    try:
        return model.model_validate(recorded)
    except ValidationError as error:
        unknown = [e["loc"] for e in error.errors() if e["type"] == "extra_forbidden"]
    try:
        return model.model_validate(_without(recorded, unknown))
    except ValidationError as error:
        where = ", ".join(".".join(str(p) for p in e["loc"]) for e in error.errors())
        raise UnknownDestination(f"the recorded settings of this destination are no good: {where}") from None


def _without(recorded: Mapping[str, Any], paths: Sequence[tuple[str | int, ...]]) -> dict[str, Any]:
    """A copy of nested mappings without the entries at these paths."""
    return {
        key: _without(value, [p[1:] for p in paths if p[0] == key]) if isinstance(value, Mapping) else value
        for key, value in recorded.items()
        if (key,) not in paths
    }


def destination(settings: Mapping[str, Any] | BaseModel, calling_ae: str = "LUMINODE") -> Destination:
    """Make a destination from its settings, recorded or from config.yaml.

    Parameters
    ----------
    settings
        A member of the union ``Destination`` of config/schema.py, or its dumped fields.
    calling_ae
        Our AE title where the settings name none (``node.ae_title``).

    Raises
    ------
    UnknownDestination
        As :func:`settings_of`.
    """
    model: Any = settings_of(settings) if isinstance(settings, Mapping) else settings
    _, make = KINDS[model.kind]
    return make(model, calling_ae)
