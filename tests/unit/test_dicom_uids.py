"""UIDs and numbers: a function of what they name, valid by PS3.5 9, and never two the same."""

from __future__ import annotations

import re
import uuid

import hypothesis.strategies as st
import pytest
from hypothesis import given

from node.dicom import uids

VALID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*")


@given(st.lists(st.text(), max_size=5))
def test_uids_are_valid_and_stable(parts: list[str]) -> None:
    uid = uids.derived_uid(*parts)
    assert VALID.fullmatch(uid)
    assert len(uid) <= 44
    assert uid == uids.derived_uid(*parts)
    as_uuid = uuid.UUID(int=int(uid.removeprefix("2.25.")))
    assert as_uuid.variant == uuid.RFC_4122
    assert as_uuid.version == 8


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_other_parts_make_another_uid(a: list[str], b: list[str]) -> None:
    assert (a == b) == (uids.derived_uid(*a) == uids.derived_uid(*b))


def test_uids_never_change_between_releases() -> None:
    # Objects in archives carry them: a change here doubles every series on its next run.
    key = uids.derivation_key(
        series_uid="1.2.3", engine="ct-nlm", engine_version="1.0.0", weights_sha256="ab",
        params={"strength": 0.5}, rule="chest",
    )  # fmt: skip
    assert key == "5629054a824c787bbde0efe1161a51af277e4f6bc02a5cdb8e0ce8079d72dcc5"
    assert uids.series_uid(key) == "2.25.84803895249704693865769443097333010608"
    assert uids.instance_uid(key, "1.2.3.4") == "2.25.42654853017423245522529576617520016671"


def _key(**changes: object) -> str:
    fields: dict[str, object] = {
        "series_uid": "1.2.3",
        "engine": "ct-nlm",
        "engine_version": "1.0.0",
        "weights_sha256": "ab",
        "params": {"strength": 0.5, "options": {"a": 1, "b": [1, 2]}},
        "rule": "chest",
    }
    return uids.derivation_key(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"series_uid": "1.2.4"},
        {"engine": "ct-tv"},
        {"engine_version": "1.0.1"},
        {"weights_sha256": "cd"},
        {"params": {"strength": 0.6}},
        {"rule": "head"},
        {"study_uid": "1.2"},
    ],
)
def test_everything_that_shapes_the_result_is_in_the_key(changes: dict[str, object]) -> None:
    assert _key(**changes) != _key()


def test_the_key_does_not_depend_on_how_parameters_are_written() -> None:
    assert _key(params={"options": {"b": (1.0, 2), "a": 1.0}, "strength": 0.5}) == _key()
    assert _key(params={"flag": True}) != _key(params={"flag": 1})
    with pytest.raises(ValueError, match="JSON"):
        _key(params={"strength": float("nan")})


def test_series_instances_and_revisions_differ() -> None:
    made = {
        uids.series_uid("k"),
        uids.series_uid("k", 2),
        uids.series_uid("l"),
        uids.instance_uid("k", "1.2"),
        uids.instance_uid("k", "1.3"),
        uids.instance_uid("k", "1.2", 2),
        uids.device_uid("0.1.0"),
        uids.device_uid("0.2.0"),
    }
    assert len(made) == 8


def test_series_numbers() -> None:
    assert uids.series_number(3, "1.2", 1000) == 1003
    assert uids.series_number(0, "1.2", 1000) == 1000
    assert uids.series_number(3, "1.2", 1000, revision=2) == 2003
    without = {uids.series_number(None, f"1.2.{n}", 1000) for n in range(20)}
    assert len(without) == 20
    assert all(10_000 < n < 20_000 for n in without)
    assert uids.series_number(None, "1.2.3", 1000) == uids.series_number(None, "1.2.3", 1000)
    assert uids.series_number(2**31 - 5, "1.2", 1000) < 2**31
    assert uids.series_number(-3, "1.2", 1000) > 10_000
