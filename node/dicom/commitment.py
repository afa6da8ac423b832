"""The data sets of Storage Commitment Push (PS3.4 J.3): read what is asked, write what is answered. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

from node.dicom.elements import Element, Elements, sequence, text, ushort
from node.dicom.encode import encode
from node.dicom.parse import parse_header
from node.errors import HeaderFault, SeriesError

PUSH_MODEL: Final = "1.2.840.10008.1.20.1"
"""Storage Commitment Push Model SOP Class."""

PUSH_INSTANCE: Final = "1.2.840.10008.1.20.1.1"
"""Its well-known instance (PS3.4 J.3.5)."""

REQUEST: Final = 1
"""Action Type ID of "Request Storage Commitment"."""

LARGEST_REQUEST: Final = 4 * 1024 * 1024
"""Bytes of a request's data set; each reference takes some 150."""

MOST_INSTANCES: Final = 20_000
"""References in one request: several times the largest exam."""

_TRANSACTION, _REFERENCED, _FAILED = 0x00081195, 0x00081199, 0x00081198
_REASON, _CLASS, _INSTANCE = 0x00081197, 0x00081150, 0x00081155
_UID = re.compile(rb"[0-9.]{1,64}\Z")

Reference: TypeAlias = tuple[str, str]
"""SOP Class UID and SOP Instance UID."""


class Reason(IntEnum):
    """Failure Reason (0008,1197) of one instance (PS3.3 C.14.1.1)."""

    PROCESSING_FAILURE = 0x0110
    NO_SUCH_INSTANCE = 0x0112
    CLASS_CONFLICT = 0x0119


class ActionStatus(IntEnum):
    """Statuses of an N-ACTION-RSP (PS3.7 10.1.4.1.10), and 0131H for a Transaction UID in use (PS3.4 J.3)."""

    PROCESSING_FAILURE = 0x0110
    NO_SUCH_INSTANCE = 0x0112
    INVALID_ARGUMENT = 0x0115
    NO_SUCH_CLASS = 0x0118
    NO_SUCH_ACTION = 0x0123
    NOT_AUTHORIZED = 0x0124
    DUPLICATE_TRANSACTION = 0x0131
    RESOURCE_LIMITATION = 0x0213


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A result: what is committed, and SOP Instance UID -> Failure Reason of what is not."""

    transaction_uid: str
    committed: frozenset[str]
    failed: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request for commitment: each reference once, in the order of the request."""

    transaction_uid: str
    references: tuple[Reference, ...]


def read_request(data: bytes, transfer_syntax_uid: str) -> Asked:
    """The Action Information of an N-ACTION-RQ (PS3.4 Table J.3-1).

    Raises
    ------
    HeaderFault
        It is none. ``status`` is what the N-ACTION-RSP is to say, the message its Error Comment.
    """
    top = _read(data, transfer_syntax_uid)
    transaction = _uid(top, _TRANSACTION)
    if not transaction:
        raise _invalid("Transaction UID is missing or no UID")
    items = top[_REFERENCED].items if _REFERENCED in top else ()
    if not items:
        raise _invalid("Referenced SOP Sequence is missing or empty")
    if len(items) > MOST_INSTANCES:
        raise HeaderFault("more instances than this node takes", status=ActionStatus.RESOURCE_LIMITATION)
    found = dict.fromkeys((_uid(item, _CLASS), _uid(item, _INSTANCE)) for item in items)
    if any(not sop_class or not instance for sop_class, instance in found):
        raise _invalid("a reference lacks a UID")
    if len({instance for _, instance in found}) < len(found):
        raise _invalid("an instance is referenced with two classes")
    return Asked(transaction_uid=transaction, references=tuple(found))


def request(transaction_uid: str, references: Iterable[Reference], transfer_syntax_uid: str) -> bytes:
    """The encoded Action Information of an N-ACTION-RQ (PS3.4 Table J.3-1)."""
    items = [(text(_CLASS, "UI", c), text(_INSTANCE, "UI", i)) for c, i in references]
    elements = (text(_TRANSACTION, "UI", transaction_uid), sequence(_REFERENCED, items))
    return encode({e.tag: e for e in elements}, transfer_syntax_uid)


def read_report(data: bytes, transfer_syntax_uid: str) -> Told:
    """The Event Information of an N-EVENT-REPORT-RQ (PS3.4 Table J.3-2). What is named as failed is not committed,
    whatever else is said of it.

    Raises
    ------
    HeaderFault
        It is none. ``status`` is what the N-EVENT-REPORT-RSP is to say, the message its Error Comment.
    """
    top = _read(data, transfer_syntax_uid)
    transaction = _uid(top, _TRANSACTION)
    if not transaction:
        raise _invalid("Transaction UID is missing or no UID")
    failed: dict[str, int] = {}
    for item in top[_FAILED].items if _FAILED in top else ():
        reason = item[_REASON].raw if _REASON in item else b""
        failed[_uid(item, _INSTANCE)] = int.from_bytes(reason[:2], "little")
    good = {_uid(item, _INSTANCE) for item in (top[_REFERENCED].items if _REFERENCED in top else ())}
    return Told(transaction_uid=transaction, committed=frozenset(good - failed.keys() - {""}), failed=failed)


def report(
    transaction_uid: str,
    references: Iterable[Reference],
    failed: Mapping[str, int],
    transfer_syntax_uid: str,
) -> tuple[int, bytes]:
    """The Event Type ID and the Event Information of an N-EVENT-REPORT-RQ (PS3.4 Table J.3-2).

    Parameters
    ----------
    failed
        SOP Instance UID -> Failure Reason, of those that are not committed.

    Returns
    -------
    int, bytes
        1 if every instance is committed, 2 if not; and the encoded data set.
    """
    good: list[tuple[Element, ...]] = []
    bad: list[tuple[Element, ...]] = []
    for sop_class, instance in references:
        both = (text(_CLASS, "UI", sop_class), text(_INSTANCE, "UI", instance))
        if instance in failed:
            bad.append((*both, ushort(_REASON, failed[instance])))
        else:
            good.append(both)
    elements = [text(_TRANSACTION, "UI", transaction_uid)]
    if good:
        elements.append(sequence(_REFERENCED, good))
    if bad:
        elements.append(sequence(_FAILED, bad))
    return (2 if bad else 1), encode({e.tag: e for e in elements}, transfer_syntax_uid)


def _read(data: bytes, transfer_syntax_uid: str) -> Elements:
    try:
        top, end = parse_header(
            data, transfer_syntax_uid, elements=8 * MOST_INSTANCES, items=4 * MOST_INSTANCES
        )
    except SeriesError:
        raise _invalid("data set cannot be parsed") from None
    if end != len(data):
        raise _invalid("data set cannot be parsed")
    return top


def _uid(elements: Elements, tag: int) -> str:
    """A UID as text, "" if there is none or it is no UID."""
    found = elements.get(tag)
    value = found.raw.rstrip(b"\0 ") if found is not None else b""
    return value.decode("ascii") if _UID.match(value) else ""


def _invalid(message: str) -> HeaderFault:
    return HeaderFault(message, status=ActionStatus.INVALID_ARGUMENT)
