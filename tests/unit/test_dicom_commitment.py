"""Requests for storage commitment as bytes: what is read, what is refused and with which status; what is answered."""

from __future__ import annotations

from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pynetdicom.dsutils import decode, encode

from node.config.load import parse
from node.dicom.commitment import MOST_INSTANCES, Asked, Reference, read_request, report
from node.errors import ConfigError, HeaderFault
from tests.committing import request
from tests.senders import CT, EXPLICIT, IMPLICIT, MR

SYNTAXES = (EXPLICIT, IMPLICIT)


def encoded(ds: Dataset, syntax: str = EXPLICIT) -> bytes:
    found = encode(ds, syntax == IMPLICIT, True)
    assert found is not None
    return found


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("undefined", [False, True])
def test_a_request_is_read(syntax: str, undefined: bool) -> None:
    ds = request("1.2.9", ["1.2.3", "1.2.0003", "1.2.3"])
    ds.StorageMediaFileSetID = "X"
    ds.ReferencedSOPSequence[0].RetrieveAETitle = "PACS"
    ds["ReferencedSOPSequence"].is_undefined_length = undefined
    for item in ds.ReferencedSOPSequence:
        item.is_undefined_length_sequence_item = undefined
    asked = read_request(encoded(ds, syntax), syntax)
    assert asked == Asked(transaction_uid="1.2.9", references=((CT, "1.2.3"), (CT, "1.2.0003")))


def broken(what: str) -> Dataset:
    ds = request("1.2.9", ["1.2.3"])
    if what == "two classes":
        ds.ReferencedSOPSequence.append(request("1", ["1.2.3"], MR).ReferencedSOPSequence[0])
    elif what == "no items":
        ds.ReferencedSOPSequence = []
    elif what in ("TransactionUID", "ReferencedSOPSequence"):
        delattr(ds, what)
    else:
        delattr(ds.ReferencedSOPSequence[0], what)
    return ds


@pytest.mark.parametrize(
    "what",
    [
        "TransactionUID", "ReferencedSOPSequence", "ReferencedSOPClassUID", "ReferencedSOPInstanceUID",
        "no items", "two classes",
    ],
)  # fmt: skip
def test_what_a_request_lacks_is_an_invalid_argument(what: str) -> None:
    with pytest.raises(HeaderFault) as told:
        read_request(encoded(broken(what)), EXPLICIT)
    assert told.value.status == 0x115
    assert len(told.value.message) <= 64


@pytest.mark.parametrize("transaction", ["", "1.2.x", "1" * 65, "../../etc"])
def test_a_transaction_uid_is_a_uid(transaction: str) -> None:
    data = encoded(request("1.2.9", ["1.2.3"]))
    value = transaction.encode() + b"\0" * (len(transaction) % 2)
    whole = data[:6] + len(value).to_bytes(2, "little") + value + data[8 + 6 :]
    with pytest.raises(HeaderFault, match="Transaction UID"):
        read_request(whole, EXPLICIT)


def test_a_request_has_a_bound() -> None:
    ds = request("1.2.9", ["1.2.3"])
    many = encoded(ds)
    start = many.index(b"\xfe\xff\x00\xe0")
    item = many[start:]
    body = item * (MOST_INSTANCES + 1)
    whole = many[: start - 4] + len(body).to_bytes(4, "little") + body
    with pytest.raises(HeaderFault) as told:
        read_request(whole, EXPLICIT)
    assert told.value.status == 0x213


@settings(max_examples=100, deadline=None)
@given(data=st.data(), syntax=st.sampled_from(SYNTAXES))
def test_whatever_comes_is_read_or_refused(data: st.DataObject, syntax: str) -> None:
    good = bytearray(encoded(request("1.2.9", ["1.2.3", "1.2.4"]), syntax))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(good) - 1))
        good[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    try:
        asked = read_request(bytes(good[:cut]), syntax)
    except HeaderFault as fault:
        statuses = {fault.status}
    else:
        statuses = set()
        assert all(0 < len(uid) <= 64 for pair in asked.references for uid in pair)
    assert statuses <= {0x115, 0x213}


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(max_size=400), syntax=st.sampled_from(SYNTAXES))
def test_noise_is_refused(raw: bytes, syntax: str) -> None:
    with pytest.raises(HeaderFault):
        read_request(raw, syntax)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("failed", [{}, {"1.2.4": 0x112}, {"1.2.3": 0x110, "1.2.4": 0x119}])
def test_a_report_is_what_the_standard_says(syntax: str, failed: dict[str, int]) -> None:
    references: list[Reference] = [(CT, "1.2.3"), (MR, "1.2.4")]
    event, data = report("1.2.9", references, failed, syntax)
    ds = decode(BytesIO(data), syntax == IMPLICIT, True)
    assert event == (2 if failed else 1)
    assert ds.TransactionUID == "1.2.9"
    assert {i.ReferencedSOPInstanceUID: i.FailureReason for i in ds.get("FailedSOPSequence", [])} == failed
    good = {i.ReferencedSOPInstanceUID for i in ds.get("ReferencedSOPSequence", [])}
    assert good == {"1.2.3", "1.2.4"} - set(failed)
    assert ("ReferencedSOPSequence" in ds) == bool(good)


CONFIG = """
node: {{accept_from: [CT1], commitment: {{promise: {promise}}}}}
store: {{keep: {{received: {keep}}}}}
destinations:
  pacs: {{kind: dimse, ae_title: PACS, address: "127.0.0.1:104", forward_originals: {forward}}}
"""


@pytest.mark.parametrize(
    ("promise", "keep", "forward", "is_honest"),
    [
        ("off", "7d", "false", True),
        ("held", "7d", "false", False),
        ("held", "7d", "true", True),
        ("held", "forever", "false", True),
        ("delivered", "forever", "false", False),
        ("delivered", "7d", "true", True),
    ],
)
def test_a_promise_that_nothing_stands_behind_is_refused(
    promise: str, keep: str, forward: str, is_honest: bool
) -> None:
    text = CONFIG.format(promise=promise, keep=keep, forward=forward)
    if is_honest:
        assert parse(text).config.node.commitment.promise == promise
        return
    with pytest.raises(ConfigError) as told:
        parse(text)
    assert told.value.faults[0].message.startswith("no destination gets the originals")
