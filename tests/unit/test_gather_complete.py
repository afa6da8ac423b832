"""The completeness ladder, rung by rung."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.gather.complete import Carried, Judgement, Ladder, SeriesView, judge
from node.model import Association, AssociationEnd, FrameHeader, InstanceHeader

T0 = datetime(2026, 1, 1, tzinfo=UTC)
LADDER = Ladder()


def header(n: int, *, promised: int = 0, n_frames: int = 1) -> InstanceHeader:
    frames = tuple(
        FrameHeader(number=f + 1, position_mm=(0.0, 0.0, float(n + f)), orientation=(1, 0, 0, 0, 1, 0))
        for f in range(n_frames)
    )
    return InstanceHeader(
        sop_class_uid="1.2", sop_instance_uid=f"1.2.{n}", study_uid="1", series_uid="2",
        transfer_syntax_uid="1.2.840.10008.1.2.1", modality="CT", rows=8, columns=8, n_frames=n_frames,
        instance_number=n, expected_count=promised, expected_because="ImagesInAcquisition" if promised else "",
        attributes={}, frames=frames, has_pixels=True,
    )  # fmt: skip


def association(name: str, end: AssociationEnd = AssociationEnd.RELEASED, at_s: float = 10) -> Association:
    ended = None if end is AssociationEnd.OPEN else T0 + timedelta(seconds=at_s)
    return Association(
        id=name,
        calling_ae="CT1",
        called_ae="LUMINODE",
        address="127.0.0.1",
        opened_at=T0,
        ended_at=ended,
        end=end,
    )


def view(n: int = 20, **changes: object) -> SeriesView:
    base = SeriesView(
        opened_at=T0,
        last_received_at=T0 + timedelta(seconds=9),
        headers=[header(i) for i in range(n)],
        n_unread=0,
        carried=[
            Carried(association=association("a"), n_instances=n, last_received_at=T0 + timedelta(seconds=9))
        ],
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def at(v: SeriesView, seconds: float, ladder: Ladder = LADDER, *, regular: bool = True) -> Judgement:
    return judge(v, T0 + timedelta(seconds=seconds), ladder, lambda _h: (regular, "as told"))


def test_released_and_regular_closes_after_settling_and_not_before() -> None:
    early = at(view(), 10.5)
    assert not early.close
    assert early.at == T0 + timedelta(seconds=11)
    assert at(view(), 11).because == "release"


def test_promised_count_closes_at_once_though_the_association_is_open() -> None:
    carried = [
        Carried(association=association("a", AssociationEnd.OPEN), n_instances=20, last_received_at=T0)
    ]
    told = at(view(headers=[header(i, promised=20) for i in range(20)], carried=carried), 9.1)
    assert told.because == "count"
    assert "ImagesInAcquisition" in told.detail


@pytest.mark.parametrize("end", [e for e in AssociationEnd if e is not AssociationEnd.RELEASED])
def test_an_association_that_was_not_released_is_no_evidence(end: AssociationEnd) -> None:
    carried = [Carried(association=association("a", end), n_instances=20, last_received_at=T0)]
    assert not at(view(carried=carried), 20).close
    assert at(view(carried=carried), 39).because == "quiet"


def test_one_aborted_among_released_spoils_the_rung() -> None:
    carried = [
        Carried(association=association("a"), n_instances=10, last_received_at=T0),
        Carried(association=association("b", AssociationEnd.ABORTED), n_instances=10, last_received_at=T0),
    ]
    assert not at(view(carried=carried), 20).close


def test_an_unkept_promise_waits_for_quiet() -> None:
    v = view(headers=[header(i, promised=24) for i in range(20)])
    assert not at(v, 20).close
    assert at(v, 39).because == "quiet"


def test_gaps_wait_for_quiet() -> None:
    assert not at(view(), 20, regular=False).close
    assert "geometry" in at(view(), 20, regular=False).detail


def test_one_association_per_instance_waits_for_quiet() -> None:
    carried = [
        Carried(association=association(str(i)), n_instances=1, last_received_at=T0) for i in range(20)
    ]
    assert not at(view(carried=carried), 20).close


def test_a_sibling_association_may_still_bring_slices() -> None:
    sibling = association("b", AssociationEnd.OPEN)
    assert not at(view(others_open=[sibling]), 20).close


def test_a_multiframe_instance_is_whole_when_released() -> None:
    one = Carried(association=association("a"), n_instances=1, last_received_at=T0)
    assert at(view(headers=[header(1, n_frames=30)], carried=[one]), 12).because == "release"


def test_an_open_association_that_still_works_keeps_the_series_awake() -> None:
    busy = Carried(
        association=association("a", AssociationEnd.OPEN),
        n_instances=20,
        last_received_at=T0 + timedelta(seconds=60),
    )
    assert not at(view(carried=[busy]), 80).close
    assert at(view(carried=[busy]), 90).because == "quiet"


def test_unread_headers_are_waited_for_but_not_for_ever() -> None:
    assert not at(view(n_unread=3), 100).close
    assert at(view(n_unread=3), 3600).because == "give_up"


def test_rungs_can_be_switched_off() -> None:
    bare = Ladder(on_count=False, on_release=False)
    v = view(headers=[header(i, promised=20) for i in range(20)])
    assert not at(v, 20, bare).close
    assert at(v, 39, bare).because == "quiet"


def test_silence_while_the_node_was_down_does_not_count() -> None:
    lost = [Carried(association=association("a", AssociationEnd.LOST), n_instances=20, last_received_at=T0)]
    up_again = T0 + timedelta(hours=2)
    v = view(carried=lost, awake_since=up_again)
    assert not at(v, 7200 + 29).close
    assert at(v, 7200 + 30).close


ends = st.sampled_from(list(AssociationEnd))


@given(st.lists(ends, min_size=1, max_size=4), st.floats(0, 4000), st.booleans(), st.integers(0, 30))
def test_every_series_closes_in_the_end_and_says_when_to_look_again(
    kinds: Sequence[AssociationEnd], seconds: float, regular: bool, promised: int
) -> None:
    carried = [
        Carried(association=association(str(i), e), n_instances=5, last_received_at=T0)
        for i, e in enumerate(kinds)
    ]
    v = view(headers=[header(i, promised=promised) for i in range(20)], carried=carried)
    told = at(v, seconds, regular=regular)
    if told.close:
        assert told.because in ("count", "release", "quiet", "give_up")
        if told.because == "release":
            assert set(kinds) == {AssociationEnd.RELEASED}
            assert regular
    else:
        assert told.at is not None
        assert told.at > T0 + timedelta(seconds=seconds)
    assert at(v, 3600, regular=regular).close
