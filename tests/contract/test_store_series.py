"""Headers packed small and unpacked whole; series read, closed, decided and listed."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import StoreError
from node.model import FrameHeader, InstanceHeader, SeriesHeader, SeriesState
from node.store import Store
from node.store.codec import pack, pack_base, pack_series_header, unpack, unpack_series_header
from tests.storing import NOW, after, closed_series, decision, header, indexed, new_job, received

scalars = st.one_of(
    st.text(max_size=12), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False)
)
attributes = st.dictionaries(
    st.sampled_from(["Modality", "ImageType", "EchoTime", "KVP", "Rows", "BodyPartExamined"]),
    st.lists(scalars, max_size=3).map(tuple),
)
numbers = st.floats(-1e6, 1e6)


def vector(n: int) -> st.SearchStrategy[Any]:
    return st.none() | st.tuples(*[numbers] * n)


frames = st.builds(
    FrameHeader,
    number=st.integers(1, 9999),
    position_mm=vector(3),
    orientation=vector(6),
    spacing_mm=vector(2),
    thickness_mm=st.none() | numbers,
    volume_key=st.lists(st.tuples(st.text(max_size=4), st.text(max_size=4)), max_size=2).map(tuple),
)
uids = st.from_regex(r"[0-9.]{1,20}", fullmatch=True)
headers = st.builds(
    InstanceHeader,
    sop_class_uid=uids,
    sop_instance_uid=uids,
    study_uid=uids,
    series_uid=uids,
    transfer_syntax_uid=uids,
    modality=st.text(max_size=4),
    rows=st.integers(0, 65535),
    columns=st.integers(0, 65535),
    n_frames=st.integers(0, 5000),
    instance_number=st.none() | st.integers(),
    expected_count=st.integers(0, 9999),
    expected_because=st.text(max_size=10),
    attributes=attributes,
    frames=st.lists(frames, max_size=4).map(tuple),
    has_pixels=st.booleans(),
    derived_by_us=st.booleans(),
    faults=st.lists(st.text(max_size=10), max_size=2).map(tuple),
)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(one=headers, base=headers)
def test_a_header_survives_packing_against_any_other(one: InstanceHeader, base: InstanceHeader) -> None:
    document = json.loads(json.dumps(pack(one, pack_base(base)), allow_nan=False))
    back = unpack(document, json.loads(json.dumps(pack_base(base), allow_nan=False)))
    assert back == one
    for keyword, values in one.attributes.items():
        assert [type(v) for v in back.attributes[keyword]] == [type(v) for v in values]


def test_what_no_json_can_say_becomes_what_places_nothing() -> None:
    from tests.storing import CT

    frame = FrameHeader(position_mm=(math.nan, 0.0, 0.0), spacing_mm=(math.inf, 1.0), thickness_mm=-math.inf)
    one = InstanceHeader(
        sop_class_uid=CT, sop_instance_uid="1", study_uid="2", series_uid="3", transfer_syntax_uid="4",
        modality="CT", rows=1, columns=1, n_frames=1, instance_number=None, expected_count=0,
        expected_because="", attributes={"KVP": (math.nan,)}, frames=(frame,), has_pixels=True,
    )  # fmt: skip
    back = unpack(json.loads(json.dumps(pack(one, pack_base(one)), allow_nan=False)), pack_base(one))
    assert back.frames == (FrameHeader(),)
    assert back.attributes == {"KVP": ("nan",)}


def test_slices_of_one_series_cost_little() -> None:
    from node.store.db import to_json
    from tests.storing import CT, EXPLICIT

    base = InstanceHeader(
        sop_class_uid=CT, sop_instance_uid="1.2.840.113619.2.55.3.1." + "7" * 30, study_uid="1.2",
        series_uid="1.3", transfer_syntax_uid=EXPLICIT, modality="CT", rows=512, columns=512, n_frames=1,
        instance_number=1, expected_count=300, expected_because="Images in Acquisition",
        attributes={f"Keyword{n}": ("some value", 1.5) for n in range(80)},
        frames=(FrameHeader(position_mm=(-120.5, -120.5, 1.25), orientation=(1, 0, 0, 0, 1, 0)),),
        has_pixels=True,
    )  # fmt: skip
    other = replace(
        base,
        sop_instance_uid="1.2.840.113619.2.55.3.1." + "8" * 30,
        instance_number=2,
        attributes={**base.attributes, "Keyword3": (2.5,)},
        frames=(replace(base.frames[0], position_mm=(-120.5, -120.5, 2.5)),),
    )
    assert len(to_json(pack(other, pack_base(base)))) < 200
    assert len(to_json(pack_base(base))) > 2000


def test_a_series_header_survives(store: Store) -> None:
    told = SeriesHeader(
        modality="CT", sop_class_uid="1", shape=(3, 512, 512), spacing_mm=(1.25, 0.7, 0.7), count=3,
        attributes={"KVP": (120.0,), "ImageType": ("ORIGINAL", "PRIMARY")}, n_frames=3, faults=("odd",),
    )  # fmt: skip
    assert unpack_series_header(json.loads(json.dumps(pack_series_header(told)))) == told
    store.reception.record([received(store, 1)])
    ((row_id, one),) = store.series.unindexed()
    store.series.index([(row_id, header(one, 1))], {1: told})
    series = store.series.get(1)
    assert series is not None
    assert series.header == told


def test_headers_come_back_in_order_of_arrival(store: Store) -> None:
    batch = [received(store, n) for n in (3, 1, 2)]
    store.reception.record(batch)
    waiting = store.series.unindexed()
    order = {i.sop_instance_uid: row_id for row_id, i in waiting}
    wanted = {i.sop_instance_uid: header(i, n, KVP=(120 if n else "?",)) for n, (_, i) in enumerate(waiting)}
    assert store.series.pending(1) == 3
    store.series.index([(order[u], h) for u, h in wanted.items()][::-1])
    assert store.series.pending(1) == 0
    assert store.series.unindexed() == []
    told = store.series.headers(1)
    assert {h.sop_instance_uid: h for h in told} == wanted
    assert [h.sop_instance_uid for h in told] == [i.sop_instance_uid for _, i in waiting]


def test_indexing_twice_or_what_is_gone_is_harmless(store: Store) -> None:
    store.reception.record([received(store, 1)])
    ((row_id, one),) = store.series.unindexed()
    for _ in range(2):
        store.series.index([(row_id, header(one, 1)), (9999, header(one, 1))])
    store.series.index([])
    assert len(store.series.headers(1)) == 1


def test_what_cannot_be_read_counts_without_a_header(store: Store) -> None:
    store.reception.record([received(store, 1), received(store, 2)])
    (bad, _), (good, one) = store.series.unindexed()
    for _ in range(2):
        store.series.mark_unreadable(bad, "nested too deep", NOW)
    store.series.index([(good, header(one, 2))])
    assert (store.series.unreadable(1), store.series.pending(1)) == (1, 0)
    assert len(store.series.headers(1)) == 1
    (event,) = store.events.list(name="instance.unreadable")
    assert (event.series_id, event.body["reason"]) == (1, "nested too deep")
    assert store.series.close(1, "quiet", NOW, count=2)


def test_headers_of_all_generations_are_those_in_force(store: Store) -> None:
    store.reception.record([received(store, 1), received(store, 2)])
    indexed(store)
    store.series.close(1, "count", NOW)
    (late,) = store.reception.record([received(store, 3)])
    store.reception.record([received(store, 1, data=b"other")], duplicates="replace")
    indexed(store)
    told = store.series.headers(late.series_id, all_generations=True)
    assert sorted(h.sop_instance_uid for h in told) == ["1.2.3.1.1", "1.2.3.1.2", "1.2.3.1.3"]
    assert len(store.series.headers(1)) == 2


def test_a_series_closes_only_with_what_was_judged(store: Store) -> None:
    store.reception.record([received(store, n) for n in (1, 2)])
    assert not store.series.close(1, "count", NOW, count=2), "not indexed yet"
    indexed(store)
    assert not store.series.close(1, "count", NOW, count=1)
    assert store.series.close(1, "count", after(5), count=2)
    assert not store.series.close(1, "count", after(6), count=2)
    series = store.series.get(1)
    assert series is not None
    assert (series.state, series.closed_at, series.closed_because) == (SeriesState.CLOSED, after(5), "count")
    assert store.series.closed_series() == [series]
    assert store.series.open_series() == []


def test_series_are_found_by_what_is_asked(store: Store) -> None:
    for s in (1, 2, 3):
        closed_series(store, series=s, n=1, at=after(s))
    store.series.route(2, decision("pacs"), [new_job()], "c", NOW)
    assert [s.id for s in store.series.list()] == [3, 2, 1]
    assert [s.id for s in store.series.list(limit=1, before_id=3)] == [2]
    assert [s.id for s in store.series.list(states=[SeriesState.ROUTED])] == [2]
    both = [SeriesState.CLOSED, SeriesState.ROUTED, SeriesState.CLOSED]
    assert [s.id for s in store.series.list(states=both)] == [3, 2, 1]
    assert [s.id for s in store.series.list(states=both, limit=2)] == [3, 2]
    assert [s.id for s in store.series.list(states=both, before_id=3, limit=1)] == [2]
    assert [s.id for s in store.series.list(study_uid="1.2.3")] == [3, 2, 1]
    assert [s.id for s in store.series.since(after(2))] == [3, 2]
    assert [s.id for s in store.series.find("1.2.3.2")] == [2]
    assert [s.id for s in store.series.find("1.2.3.2.1")] == [2]
    assert [s.id for s in store.series.find("1.2.3")] == [1, 2, 3]
    assert store.series.find("9.9") == []
    assert store.series.counts() == {SeriesState.CLOSED: 2, SeriesState.ROUTED: 1}
    assert store.series.get(99) is None
    assert store.series.decision(1) is None
    for ask in (store.series.generations, lambda i: store.series.instances(i, all_generations=True)):
        with pytest.raises(StoreError):
            ask(99)
