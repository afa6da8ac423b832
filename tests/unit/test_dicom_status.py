"""What a C-STORE status means to a sender (PS3.4 Table B.2-1, PS3.7 Annex C)."""

from __future__ import annotations

import pytest

from node.dicom.status import NO_ANSWER, Status, describe, storage_outcome


@pytest.mark.parametrize(
    ("status", "done", "retryable"),
    [
        (0x0000, True, False),
        (0x0111, True, False),
        (0xB000, True, False),
        (0xB006, True, False),
        (0xB007, True, False),
        (0xBFFF, True, False),
        (0x0001, True, False),
        (NO_ANSWER, False, True),
        (0xA700, False, True),
        (0xA7FF, False, True),
        (0x0110, False, True),
        (0x0213, False, True),
        (0xA900, False, False),
        (0xC000, False, False),
        (0xCFFF, False, False),
        (0x0117, False, False),
        (0x0122, False, False),
        (0x0124, False, False),
        (0x1234, False, False),
    ],
)
def test_outcomes(status: int, done: bool, retryable: bool) -> None:
    assert storage_outcome(status) == (done, retryable)


def test_no_status_is_both_done_and_to_be_retried() -> None:
    for status in range(-1, 0x10000):
        done, retryable = storage_outcome(status)
        assert not (done and retryable)


def test_descriptions() -> None:
    assert describe(Status.OUT_OF_RESOURCES) == "A700H out of resources"
    assert describe(0xA7AB) == "A7ABH refused or failed"
    assert describe(0xB123) == "B123H stored with a warning"
    assert describe(0x0999) == "0999H unknown status"
    assert describe(NO_ANSWER) == "no answer"
