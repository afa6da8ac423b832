"""DIMSE status codes of the Storage service, and what a sender should make of them.

Codes: PS3.7 Annex C and PS3.4 B.2.3 (Table B.2-1).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Status(IntEnum):
    """Statuses that this node answers with or gives a meaning to."""

    SUCCESS = 0x0000
    PROCESSING_FAILURE = 0x0110
    DUPLICATE_SOP_INSTANCE = 0x0111
    INVALID_SOP_INSTANCE = 0x0117
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    NOT_AUTHORIZED = 0x0124
    DUPLICATE_INVOCATION = 0x0210
    UNRECOGNIZED_OPERATION = 0x0211
    MISTYPED_ARGUMENT = 0x0212
    RESOURCE_LIMITATION = 0x0213
    OUT_OF_RESOURCES = 0xA700
    DATA_SET_MISMATCH = 0xA900
    CANNOT_UNDERSTAND = 0xC000
    COERCED = 0xB000
    ELEMENTS_DISCARDED = 0xB006
    MISMATCH_WARNING = 0xB007
    CANCEL = 0xFE00
    PENDING = 0xFF00
    PENDING_WARNING = 0xFF01


NO_ANSWER: Final = -1
"""No status came back: unknown, never failed (the instance may be stored)."""

COMMENT_LENGTH: Final = 64
"""Most characters of an Error Comment (0000,0902), VR LO; longer ones made peers drop the response."""

_TRANSIENT: Final = frozenset(
    {
        Status.PROCESSING_FAILURE,
        Status.DUPLICATE_INVOCATION,
        Status.RESOURCE_LIMITATION,
        Status.CANCEL,
        Status.PENDING,
        Status.PENDING_WARNING,
    }
)


def storage_outcome(status: int) -> tuple[bool, bool]:
    """What a C-STORE response means to the sender.

    Parameters
    ----------
    status
        Of the C-STORE-RSP, or :data:`NO_ANSWER`.

    Returns
    -------
    done, retryable
        ``done``: the peer holds the instance (success, any Bxxx warning, the general warnings 0001H and
        0107H/0116H, or 0111H: there already). ``retryable``: sending the same again later may succeed
        (no answer, A7xx out of resources, 0110H, 0213H and other transient answers). Neither: a person
        must look (A9xx, Cxxx, 0117H, 0122H, 0124H and everything unheard of).
    """
    if status == NO_ANSWER:
        return False, True
    if status in (Status.SUCCESS, Status.DUPLICATE_SOP_INSTANCE, 0x0001, 0x0107, 0x0116):
        return True, False
    if 0xB000 <= status <= 0xBFFF:
        return True, False
    return False, 0xA700 <= status <= 0xA7FF or status in _TRANSIENT


def describe(status: int) -> str:
    """The status for people: its number as in the standard and, where known, its name."""
    if status == NO_ANSWER:
        return "no answer"
    try:
        name = Status(status).name.replace("_", " ").lower()
    except ValueError:
        name = {0xA: "refused or failed", 0xB: "stored with a warning", 0xC: "cannot understand"}.get(
            status >> 12, "unknown status"
        )
    return f"{status:04X}H {name}"
