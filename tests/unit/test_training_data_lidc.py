"""LIDC-IDRI: both layouts, and every trap of the real one, on generated look-alikes."""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from training.data import dicom, lidc, lidc_xml
from training.data.lookalike import body
from training.data.lookalike_lidc import (
    _SERIES,
    HOLE,
    MISSING,
    N_POSITIONS,
    NODULE,
    PATIENTS,
    TWICE,
    circle,
    message,
    nodule,
    roi,
)
from training.data.lookalike_lidc import lidc as write_lidc
from training.data.nodules import Positions, around, cluster, findings, labels, mask_of, place
from training.data.records import Found, Scan, patient_key
from training.errors import DataError


@pytest.fixture(scope="module", params=["new", "old"])
def tree(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(request.param)
    write_lidc(root, layout=request.param)
    return root


@pytest.fixture(scope="module")
def found(tree: Path) -> Found:
    return lidc.load(tree)


def of(found: Found, patient: str) -> Scan:
    (scan,) = [s for s in found.scans if s.patient == patient_key(patient)]
    return scan


def test_the_four_patients(found: Found) -> None:
    assert {s.patient for s in found.scans} == {patient_key(p) for p in PATIENTS}
    told = [of(found, p).domains for p in PATIENTS]
    assert [d["vendor"] for d in told] == ["GE", "Siemens", "Philips", "Toshiba"]
    assert [d["kernel"] for d in told] == ["standard", "sharp", "standard", "standard"]
    assert [d["thickness"] for d in told] == ["medium", "thin", "thick", "medium"]
    assert [d["dose"] for d in told] == ["low", "high", "middle", "middle"]
    assert [d["nodule"] for d in told] == ["some", "none", "some", "unread"]


def test_what_is_left_out(found: Found) -> None:
    assert found.reasons() == {
        "neither CT nor MR": 1,
        "a localizer": 1,
        "a second image at the same position": 1,
        "XML, but no reading of a CT": 1,
    }


def test_images_of_anyone_else_do_not_come_under_its_licence(tmp_path: Path) -> None:
    root = write_lidc(tmp_path)
    for path in (root / PATIENTS[0]).rglob("*.dcm"):
        path.write_bytes(path.read_bytes().replace(PATIENTS[0].encode(), b"WARD-7 / 00017"))
    found = lidc.load(root)
    assert set(found.patients()) == {patient_key(p) for p in PATIENTS[1:]}
    assert any("not of LIDC-IDRI" in reason for reason in found.reasons())


def test_nodule_domains(found: Found) -> None:
    first, third = of(found, PATIENTS[0]).domains, of(found, PATIENTS[2]).domains
    assert [first[d] for d in lidc.NODULE_DOMAINS] == ["solid", "yes", "no", "high"]
    assert [third[d] for d in lidc.NODULE_DOMAINS] == ["ground-glass", "no", "yes", "low"]


def test_missing_slice_ends_a_run_and_the_second_image_at_a_position_is_not_used(found: Found) -> None:
    scan = of(found, PATIENTS[0])
    assert scan.shape[0] == N_POSITIONS - 1
    assert scan.runs == ((0, MISSING), (MISSING, N_POSITIONS - 1))
    assert scan.spacing_mm == pytest.approx((2.5, 1.0, 1.0))
    volume = scan.load()
    truth = body(N_POSITIONS + 1, seed=0)
    kept = [p for p in range(N_POSITIONS) if p != MISSING]
    for values, valid, position in zip(volume.values, volume.valid, kept, strict=True):
        assert np.abs(values - truth[position])[valid].max() <= 0.501
    assert [i for i, there in enumerate(volume.contiguous) if not there] == [MISSING - 1, N_POSITIONS - 2]


def test_padding_is_no_tissue(found: Found) -> None:
    scan = of(found, PATIENTS[0])
    volume = scan.load()
    assert not volume.valid[:, 0, 0].any()
    assert volume.valid[:, 32, 32].all()
    assert (volume.values[~volume.valid] == dicom.AIR_HU).all()
    assert volume.values.min() > -1100
    assert 0.75 < volume.valid.mean() < 0.82


def test_findings_of_the_first_patient(found: Found) -> None:
    seen = of(found, PATIENTS[0]).findings
    assert [(f.kind, f.n_readers) for f in seen] == [
        ("nodule", 4),
        ("nodule", 2),
        ("non-nodule", 1),
        ("small nodule", 2),
    ]
    assert seen[0].centre == pytest.approx((5.0, NODULE[1], NODULE[0] + 0.5), abs=0.1)
    assert seen[0].box[0] == (4, 7)
    assert set(seen[0].labels) == set(lidc.NODULE_DOMAINS)
    assert seen[1].labels == {}
    assert seen[2].centre[0] == MISSING  # position 9, with one slice missing below it
    assert "1 marks lie in no slice of the scan" in of(found, PATIENTS[0]).notes


def test_a_box_with_a_margin_stays_in_the_volume(found: Found) -> None:
    scan = of(found, PATIENTS[0])
    box = around(scan.findings[0], scan.shape, scan.spacing_mm)
    assert box == ((2, 9), (22, 43), (6, 28))
    assert around(scan.findings[0], scan.shape, scan.spacing_mm, margin_mm=500)[1] == (0, 64)


def test_no_patient_in_what_is_kept(found: Found) -> None:
    for scan in found.scans:
        assert "IDRI-0" not in repr(scan)
        assert "Nobody" not in pickle.dumps(scan).decode("latin-1")


def test_a_scan_travels_to_another_process(found: Found) -> None:
    scan = of(found, PATIENTS[2])
    again = pickle.loads(pickle.dumps(scan))
    assert np.array_equal(again.load().values, scan.load().values)


def test_layout_makes_no_difference(tmp_path: Path) -> None:
    for layout in ("new", "old"):
        write_lidc(tmp_path / layout, layout=layout)
    apart = lidc.load(tmp_path / "old" / "LIDC-IDRI", annotations=tmp_path / "old" / "LIDC-XML-only")
    assert lidc.load(tmp_path / "new").scans == apart.scans
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted((tmp_path / "new").rglob("*"))):
        if path.is_file():
            shutil.copy(path, flat / (f"{i}.xml" if path.suffix == ".xml" else f"{i}"))
    assert lidc.load(flat).scans == apart.scans


def test_a_hole_is_no_part_of_the_nodule(tree: Path) -> None:
    series = _SERIES[0]
    (stack,) = [s for s in dicom.index(tree).stacks if s.series_instance_uid == series.series_uid]
    x, y, radius = NODULE
    solid = roi(series, 5, circle(x, y, radius))
    rated = (5, 1, 6, 3, 4, 3, 5, 5, 4)
    text = message(
        series.series_uid,
        [
            nodule("A", rated, solid),
            nodule("B", rated, solid + roi(series, 5, circle(x, y, HOLE), inclusion=False)),
        ],
    )
    reading = _parsed(text, tree)
    placed = [place(m, Positions(stack), (11, 64, 64), (2.5, 1, 1)) for m in reading.marks]
    whole, holed = (mask_of(p.outlines, p.box) for p in placed if p is not None)
    assert whole[0, radius, radius]
    assert not holed[0, radius, radius]
    assert not (holed & ~whole).any()
    assert not whole[0, radius, 0]  # the outline itself is outside of the nodule
    assert whole[0, radius, 1]


def _parsed(text: str, folder: Path) -> lidc_xml.Reading:
    path = folder / "made.xml_"
    path.write_text(text)
    reading = lidc_xml.read(path, path.name)
    path.unlink()
    assert reading is not None
    return reading


def test_marks_in_a_doubled_slice_and_without_uid_are_placed_by_position(tree: Path) -> None:
    series = _SERIES[0]
    (stack,) = [s for s in dicom.index(tree).stacks if s.series_instance_uid == series.series_uid]
    edge = circle(16, 32, 5)
    doubled = re.sub("<imageZposition>.*</imageZposition>", "", roi(series, TWICE, edge, again=True))
    nameless = roi(series, 6, edge).replace("<imageSOP_UID>", "<gone>").replace("</imageSOP_UID>", "</gone>")
    lost = roi(series, MISSING, edge)
    rated = (5, 1, 6, 3, 4, 3, 5, 5, 4)
    sessions = [nodule(str(i), rated, r) for i, r in enumerate((doubled, nameless, lost))]
    seen, n_lost = findings(_parsed(message(series.series_uid, sessions), tree).marks, stack)
    assert n_lost == 1
    assert sorted(f.centre[0] for f in seen) == [TWICE, 6]


def test_a_cluster_never_holds_two_marks_of_one_reader(tree: Path) -> None:
    series = _SERIES[2]
    (stack,) = [s for s in dicom.index(tree).stacks if s.series_instance_uid == series.series_uid]
    rated = (5, 1, 6, 3, 4, 3, 5, 5, 4)
    both = "".join(nodule(str(x), rated, roi(series, 5, circle(x, 32, 4))) for x in (14, 18))
    one = nodule("14", rated, roi(series, 5, circle(14, 32, 4)))
    reading = _parsed(message(series.series_uid, [both, one, one]), tree)
    placed = [place(m, Positions(stack), (12, 64, 64), (2.5, 1, 1)) for m in reading.marks]
    groups = cluster([p for p in placed if p is not None], (2.5, 1, 1))
    assert sorted(len(g) for g in groups) == [1, 3]
    assert [labels(g) for g in groups if len(g) == 1] == [{}]


@pytest.mark.parametrize(
    ("textures", "wanted"),
    [
        ((1, 2, 2), "ground-glass"),
        ((3, 3, 1), "part-solid"),
        ((2, 3, 2, 3), "part-solid"),
        ((5, 4, 1), "solid"),
    ],
)
def test_consensus_is_the_median(tree: Path, textures: tuple[int, ...], wanted: str) -> None:
    series = _SERIES[2]
    (stack,) = [s for s in dicom.index(tree).stacks if s.series_instance_uid == series.series_uid]
    edge = roi(series, 5, circle(16, 32, 4))
    sessions = [nodule("N", (5, 1, 6, 3, 4, 3, 1, t, 3), edge) for t in textures]
    (seen,), _ = findings(_parsed(message(series.series_uid, sessions), tree).marks, stack)
    assert seen.labels["texture"] == wanted
    assert seen.labels["malignancy"] == "undecided"


def test_ratings_outside_their_range_do_not_count(tree: Path) -> None:
    edge = roi(_SERIES[2], 5, circle(16, 32, 4))
    (mark,) = _parsed(message("1.2", [nodule("N", (0, 1, 7, 3, 4, 3, 1, 5, 6), edge)]), tree).marks
    assert mark.kind == "nodule"
    assert set(mark.ratings) == {
        "internalStructure",
        "sphericity",
        "margin",
        "lobulation",
        "spiculation",
        "texture",
    }


BILLION_LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>'
    "<LidcReadMessage>&b;</LidcReadMessage>"
)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (BILLION_LAUGHS.encode(), "DOCTYPE"),
        (BILLION_LAUGHS.encode("utf-16"), "DOCTYPE"),
        (b"<a>" * 40 + b"</a>" * 40, "too deep"),
        (b"<LidcReadMessage><readingSession>", "not a reading"),
        (b"", "not a reading"),
    ],
)
def test_xml_that_is_refused(raw: bytes, why: str) -> None:
    with pytest.raises(DataError, match=f"(?s)bad.xml.*{why}"):
        lidc_xml.parse(raw, "bad.xml")


def test_large_xml_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lidc_xml, "MOST_BYTES", 10)
    (tmp_path / "a.xml").write_text("<LidcReadMessage></LidcReadMessage>")
    with pytest.raises(DataError, match="larger than"):
        lidc_xml.read(tmp_path / "a.xml", "a.xml")


def test_a_bad_reading_does_not_stop_the_others(tmp_path: Path) -> None:
    write_lidc(tmp_path)
    (tmp_path / "LIDC-IDRI" / "bad.xml").write_bytes(BILLION_LAUGHS.encode())
    again = next((tmp_path / "LIDC-IDRI" / PATIENTS[0]).rglob("158.xml"))
    other = again.read_text().replace("<texture>5<", "<texture>1<")
    (tmp_path / "LIDC-IDRI" / "zzz.xml").write_text(other)
    found = lidc.load(tmp_path)
    assert any("DOCTYPE" in one.reason and one.what.endswith("bad.xml") for one in found.left_out)
    assert found.reasons()["a second reading of the same series"] == 1
    assert any("disagree" in note for note in of(found, PATIENTS[0]).notes)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no CT series of LIDC-IDRI can be used: there is no file"):
        lidc.load(tmp_path)
    with pytest.raises(DataError, match="no folder 'gone'"):
        lidc.load(tmp_path / "gone")
