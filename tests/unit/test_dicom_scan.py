"""The UIDs out of the first bytes: right for every encoding, and total for any bytes."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.dicom.encoding import Limits
from node.dicom.scan import Ids, NeedMore, scan_file, scan_uids
from node.errors import HeaderFault, StoreError
from tests.dicom_samples import BIG, DEFLATED, EXPLICIT, IMPLICIT, corpus, image, part10
from tests.encoded import (
    ITEM,
    SERIES,
    SOP_CLASS,
    SOP_INSTANCE,
    STUDY,
    UNDEFINED,
    dataset,
    deflated,
    element,
    head,
    sequence,
)
from tests.encoded import part10 as own_part10

IDS = Ids(SOP_CLASS, SOP_INSTANCE, STUDY, SERIES)
J2K = "1.2.840.10008.1.2.4.90"
GE_PRIVATE = "1.2.840.113619.5.2"


def encodings() -> list[tuple[str, bool, bool]]:
    return [(EXPLICIT, True, True), (J2K, True, True), (BIG, True, False), (IMPLICIT, False, True),
            (GE_PRIVATE, False, True)]  # fmt: skip


@pytest.mark.parametrize(("syntax", "explicit", "little"), encodings())
def test_every_encoding_with_nested_sequences(syntax: str, explicit: bool, little: bool) -> None:
    how = {"explicit": explicit, "little": little}
    inner = sequence(0x00081199, element(0x00081150, "UI", "1.2", **how), **how)
    data = dataset(
        sequence(0x00081140, inner, element(0x00081150, "UI", "9.9", **how), **how),
        element(0x00091001, "UN", b"\1\2\3\4", **how),
        **how,
    )
    assert scan_uids(data, syntax, final=True) == IDS
    assert scan_uids(memoryview(data), syntax) == IDS
    assert scan_uids(bytearray(data), syntax) == IDS


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG, DEFLATED])
def test_what_pydicom_writes(syntax: str, tmp_path: Path) -> None:
    ds = image()
    data = part10(ds, syntax)
    path = tmp_path / "a"
    path.write_bytes(data)
    meta = pydicom.filereader.read_file_meta_info(path)
    offset = 132 + 12 + meta.FileMetaInformationGroupLength
    wanted = Ids(ds.SOPClassUID, ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID)
    assert scan_uids(data[offset:], syntax, final=True) == wanted
    assert scan_file(path, offset, syntax) == wanted


def test_unknown_content_is_implicit_inside_explicit() -> None:
    inner = element(0x00080018, "UI", "6.6.6", explicit=False)
    for explicit in (True, False):
        data = dataset(sequence(0x00091001, inner, explicit=explicit, vr="UN"), explicit=explicit)
        assert scan_uids(data, EXPLICIT if explicit else IMPLICIT, final=True) == IDS


def test_uids_inside_sequences_are_not_taken() -> None:
    wrong = element(0x00080018, "UI", "6.6.6")
    for item in (head(ITEM, len(wrong)) + wrong, head(ITEM, UNDEFINED) + wrong + head(0xFFFEE00D, 0)):
        body = item + head(0xFFFEE0DD, 0)
        assert scan_uids(dataset(head(0x00081140, UNDEFINED, vr="SQ") + body), EXPLICIT) == IDS
    item = head(ITEM, len(wrong)) + wrong
    assert scan_uids(dataset(head(0x00081140, len(item), vr="SQ") + item), EXPLICIT) == IDS


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG, DEFLATED])
def test_any_prefix_asks_for_more_until_it_has_enough(syntax: str) -> None:
    how = {"explicit": syntax != IMPLICIT, "little": syntax != BIG}
    plain = dataset(
        sequence(0x00081140, element(0x00081150, "UI", "1.2", **how), **how),
        element(0x00180022, "CS", "X" * 300, **how),
        after=element(0x00280010, "US", b"\0\1", **how),
        **how,
    )
    data = deflated(plain) if syntax == DEFLATED else plain
    answers = [scan_uids(data[:n], syntax) for n in range(len(data) + 1)]
    for n, answer in enumerate(answers):
        if isinstance(answer, NeedMore):
            assert n < answer.size
        else:
            assert answer == IDS
    first = next(n for n, answer in enumerate(answers) if isinstance(answer, Ids))
    assert all(isinstance(answer, NeedMore) for answer in answers[:first])
    assert all(answer == IDS for answer in answers[first:])
    if syntax != DEFLATED:
        assert all(answer.size <= first for answer in answers[:first])  # never waits for more than it needs
    for n in range(first):
        with pytest.raises(HeaderFault):
            scan_uids(data[:n], syntax, final=True)


def test_padding_is_cut_and_leading_zeros_stay() -> None:
    data = dataset(study=b"1.02.3\0\0", series="1.2.03 ")
    assert scan_uids(data, EXPLICIT) == Ids(SOP_CLASS, SOP_INSTANCE, "1.02.3", "1.2.03")


@pytest.mark.parametrize(
    "bad", ["1.2.a", "../../x", "1.2.3\n", " 1.2", "1" * 65, "1" * 1000, "1.2\0.3", "1\\2"]
)
@pytest.mark.parametrize("which", ["sop_class", "sop_instance", "study", "series"])
def test_what_is_no_uid_is_refused(bad: str, which: str) -> None:
    with pytest.raises(HeaderFault) as caught:
        scan_uids(dataset(**{which: bad}), EXPLICIT)
    assert caught.value.status == 0x0117
    assert bad not in str(caught.value)


@pytest.mark.parametrize("which", ["study", "series"])
@pytest.mark.parametrize("empty", [b"", b"\0\0", b"  "])
def test_study_and_series_must_be_there(which: str, empty: bytes) -> None:
    with pytest.raises(HeaderFault) as caught:
        scan_uids(dataset(**{which: empty}), EXPLICIT, final=True)
    assert caught.value.status == 0xA900


def test_the_command_may_name_class_and_instance() -> None:
    assert scan_uids(dataset(sop_class=b"", sop_instance=b""), EXPLICIT) == Ids("", "", STUDY, SERIES)


def test_a_data_set_that_ends_without_uids_is_a_mismatch() -> None:
    for data in (b"", element(0x00080060, "CS", "CT"), element(0x00280010, "US", b"\0\1")):
        with pytest.raises(HeaderFault) as caught:
            scan_uids(data, EXPLICIT, final=True)
        assert caught.value.status == 0xA900


def test_two_different_values_are_a_fault_and_equal_ones_are_not() -> None:
    again = element(0x00080018, "UI", SOP_INSTANCE)
    assert scan_uids(dataset(again), EXPLICIT) == IDS
    with pytest.raises(HeaderFault, match="twice"):
        scan_uids(dataset(element(0x00080018, "UI", "6.6")), EXPLICIT)


def test_explicit_taken_for_implicit_and_the_other_way_round() -> None:
    with pytest.raises(HeaderFault):
        scan_uids(dataset(explicit=False), EXPLICIT, final=True)
    with pytest.raises(HeaderFault):
        scan_uids(dataset(), IMPLICIT, final=True)


def nested(depth: int) -> bytes:
    return b"".join(head(0x00081140, UNDEFINED, vr="SQ") + head(ITEM, UNDEFINED) for _ in range(depth))


BOMBS = {
    "depth 65": nested(65),
    "depth 20,000": nested(20_000),
    "a million elements": element(0x00080005, "CS", "") * 1_000_000,
    "a million elements in an item": head(0x00081140, UNDEFINED, vr="SQ")
    + head(ITEM, UNDEFINED)
    + element(0x00080005, "CS", "") * 1_000_000,
    "half a million items": head(0x00081140, UNDEFINED, vr="SQ") + head(ITEM, 0) * 500_000,
    "4 GiB claimed": head(0x00091001, 0xFFFFFFFE, vr="UN"),
    "4 GiB claimed by an item": head(0x00081140, UNDEFINED, vr="SQ") + head(ITEM, 0xFFFFFFFE),
    "no item in a sequence": head(0x00081140, UNDEFINED, vr="SQ") + element(0x00080005, "CS", ""),
    "a delimiter too many": head(0xFFFEE0DD, 0),
    "an item's end in a sequence": head(0x00081140, UNDEFINED, vr="SQ") + head(0xFFFEE00D, 0),
    "no VR": b"\x08\0\x05\0\0\0\0\0",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused_soon(bomb: str) -> None:
    data = BOMBS[bomb]
    began = time.process_time()
    with pytest.raises(HeaderFault):
        scan_uids(data, EXPLICIT, final=True)
    assert time.process_time() - began < 5.0


def test_depth_64_is_fine() -> None:
    inner = b""
    for _ in range(63):
        inner = sequence(0x00081140, inner)
    assert scan_uids(dataset(inner), EXPLICIT) == IDS


def deflate_bomb(size: int) -> bytes:
    """An element in front of the UIDs that claims ``size`` bytes, 64 MiB of which follow, deflated."""
    machine = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    parts = [machine.compress(head(0x00080001, size, vr="UN"))]
    parts += [machine.compress(bytes(1 << 20)) for _ in range(64)]
    return b"".join(parts) + machine.flush()


@pytest.mark.parametrize("size", [1 << 20, 1 << 30])
def test_deflate_bombs_cost_neither_time_nor_memory(size: int) -> None:
    bomb = deflate_bomb(size)
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(HeaderFault):
        scan_uids(bomb, DEFLATED, final=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - began < 5.0
    assert peak < 64 << 20


def test_corrupt_deflate_is_a_fault() -> None:
    with pytest.raises(HeaderFault, match="corrupt"):
        scan_uids(b"\xff" * 100, DEFLATED)


def test_scan_file_reads_on_until_it_finds_them(tmp_path: Path) -> None:
    data = dataset(element(0x00091001, "UN", bytes(3 << 20)), after=bytes(1000))
    path = tmp_path / "a"
    path.write_bytes(b"meta" + data)
    assert scan_file(path, 4, EXPLICIT) == IDS
    assert scan_file(path, 4, EXPLICIT, at_least=4 << 20) == IDS
    with pytest.raises(HeaderFault, match="first 1 MiB"):
        scan_file(path, 4, EXPLICIT, limits=Limits(header_bytes=1 << 20))
    path.write_bytes(b"meta" + data[: 2 << 20])
    with pytest.raises(HeaderFault, match="claims more"):
        scan_file(path, 4, EXPLICIT)
    path.write_bytes(b"")
    with pytest.raises(HeaderFault):
        scan_file(path, 4, EXPLICIT)
    with pytest.raises(StoreError):
        scan_file(tmp_path / "none", 0, EXPLICIT)


SYNTAXES = st.sampled_from([EXPLICIT, IMPLICIT, BIG, DEFLATED, J2K, "", "9.9.9"])


def total(data: bytes, syntax: str, final: bool) -> None:
    began = time.process_time()
    try:
        found = scan_uids(data, syntax, final=final)
    except HeaderFault as fault:
        assert fault.status in (0xC000, 0xA900, 0x0117)  # noqa: PT017
    else:
        assert isinstance(found, Ids) or (
            isinstance(found, NeedMore) and not final and found.size > len(data)
        )
    assert time.process_time() - began < 5.0  # 250 ms where nothing else runs: R21


@given(st.binary(max_size=400), SYNTAXES, st.booleans())
def test_total_for_any_bytes(data: bytes, syntax: str, final: bool) -> None:
    total(data, syntax, final)


def test_total_for_mutations_of_real_structure() -> None:
    chance = random.Random(20)
    seeds: list[tuple[bytes, str]] = []
    for syntax in (EXPLICIT, IMPLICIT, BIG):
        how = {"explicit": syntax != IMPLICIT, "little": syntax != BIG}
        inner = sequence(0x00081199, element(0x00081150, "UI", "1.2", **how), **how)
        seeds.append((dataset(sequence(0x00081140, inner, inner, **how), **how), syntax))
    seeds.append((deflated(seeds[0][0]), DEFLATED))
    for _ in range(8_000):
        data, syntax = chance.choice(seeds)
        mutated = bytearray(data)
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(len(mutated))
            kind = chance.randrange(4)
            if kind == 0:
                mutated[at] ^= 1 << chance.randrange(8)
            elif kind == 1:
                mutated[at : at + 4] = struct.pack("<L", chance.choice([0, 1, UNDEFINED, 0x80000000, 0xFFFE]))
            elif kind == 2:
                del mutated[at : at + chance.randint(1, 16)]
                mutated = mutated or bytearray(b"\0")
            else:
                mutated[at:at] = mutated[at : at + chance.randint(1, 64)]
        total(bytes(mutated), syntax, chance.random() < 0.5)


def test_an_ordinary_header_takes_less_than_100_microseconds() -> None:
    """The least of many runs, for the machine may be busy with other tests."""
    filler = b"".join(element(0x00080020 + n, "DA", "20240102") for n in range(30))
    filler += b"".join(element(0x00100010 + n, "LO", "X" * 16) for n in range(10))
    filler += sequence(
        0x00081140, *[element(0x00081150, "UI", SOP_CLASS) + element(0x00081155, "UI", STUDY)] * 2
    )
    filler += b"".join(element(0x00180050 + n, "DS", "1.25") for n in range(40))
    data = memoryview(dataset(filler, after=bytes(60_000)))
    best = 1.0
    for _ in range(400):
        began = time.perf_counter()
        scan_uids(data, EXPLICIT)
        best = min(best, time.perf_counter() - began)
    assert best < 1e-3


@pytest.mark.corpus
def test_corpus_agrees_with_pydicom() -> None:
    n_files = 0
    for top in ("ct", "mr", "odd", "headers_only"):
        for path in sorted(corpus(top).rglob("*")):
            if not path.is_file() or path.name in ("no_meta.dcm", "meta_missing_tsyntax.dcm"):
                continue
            meta = pydicom.filereader.read_file_meta_info(path)
            offset = 132 + 12 + meta.FileMetaInformationGroupLength
            ds = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[
                "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])  # fmt: skip
            wanted = Ids(*(str(ds.get(k, "")) for k in (
                "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")))  # fmt: skip
            if not wanted.study_uid:
                with pytest.raises(HeaderFault) as caught:
                    scan_file(path, offset, str(meta.TransferSyntaxUID))
                assert caught.value.status == 0xA900
            else:
                assert scan_file(path, offset, str(meta.TransferSyntaxUID)) == wanted
            n_files += 1
    assert n_files > 400


def test_own_part10_is_what_pydicom_reads(tmp_path: Path) -> None:
    """The oracle of the tests that use tests/encoded.py."""
    path = tmp_path / "a"
    path.write_bytes(own_part10(dataset(), EXPLICIT))
    assert pydicom.dcmread(path).SeriesInstanceUID == SERIES
