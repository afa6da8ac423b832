"""A look-alike of LIDC-IDRI in either of TCIA's layouts, with the traps of the real one.

``LIDC-IDRI-0001`` (GE)
    Padding of -2000 outside of the circle, with a Pixel Padding Value of the wrong sign; the slice at 20 mm is
    missing; two images at 10 mm, of which the second is another picture; a radiograph with an
    ``IdriReadMessage``. Read: a solid, spiculated nodule by four readers, with a hole drawn by one; one by two
    readers; a small nodule; a small one in the missing slice only; a non-nodule.
``LIDC-IDRI-0002`` (Siemens)
    A localizer beside the series. Read: nothing.
``LIDC-IDRI-0003`` (Philips)
    A reading without Series Instance UID. Read: a calcified ground-glass nodule by three readers.
``LIDC-IDRI-0004`` (Toshiba)
    No reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
from pydicom.dataelem import DataElement

from training.data.lidc_xml import RATINGS
from training.data.lookalike import SIDE, Series, body, stored_of, uid, write_ct

Layout = Literal["new", "old"]
NAMESPACE: Final = "http://www.nih.gov"
GAP_MM: Final = 2.5
N_POSITIONS: Final = 12
MISSING: Final = 8
TWICE: Final = 4
"""Positions in the first patient's scan, counted from 0."""
NODULE: Final = (16, 32, 5)
HOLE: Final = 2
"""(x, y, radius) in pixels of the first nodule, in positions 4, 5 and 6, and the radius of the hole in 5."""
SECOND: Final = (46, 32, 4)
PATIENTS: Final = ("LIDC-IDRI-0001", "LIDC-IDRI-0002", "LIDC-IDRI-0003", "LIDC-IDRI-0004")
_SERIES: Final = (
    Series(
        patient=PATIENTS[0],
        name="ct",
        manufacturer="GE MEDICAL SYSTEMS",
        kernel="STANDARD",
        exposure=40,
        extra={"PixelPaddingValue": DataElement(0x00280120, "US", 63536)},  # -2000 as unsigned, as GE did
    ),
    Series(
        patient=PATIENTS[1], name="ct", manufacturer="SIEMENS", kernel="B60f", thickness_mm=1.0, exposure=300
    ),
    Series(patient=PATIENTS[2], name="ct", manufacturer="Philips", kernel="C", thickness_mm=5.0),
    Series(patient=PATIENTS[3], name="ct", manufacturer="TOSHIBA", kernel="FC10", thickness_mm=3.0),
)


def sop(series: Series, position: int, again: bool = False) -> str:
    """SOP Instance UID of the image at a position; of the second one there with ``again``."""
    return uid(series.series_uid, position, again)


def z_mm(position: int) -> float:
    """Where a position lies."""
    return -50.0 + GAP_MM * position


def lidc(root: Path, *, layout: Layout = "new") -> Path:
    """Write the tree below ``root``; return the folder ``LIDC-IDRI``.

    Parameters
    ----------
    layout
        ``new``: ``01-01-2000-NA-NA-30178/3000566.000000-NA-03192/1-001.dcm`` with the readings beside the
        slices. ``old``: ``01-01-2000-30178/3000566-03192/000001.dcm`` with the readings in
        ``LIDC-XML-only/tcia-lidc-xml/NNN``, beside ``LIDC-IDRI``.
    """
    top = root / "LIDC-IDRI"
    for i, series in enumerate(_SERIES):
        folder = top / series.patient / _folder(layout, i, "3000566")
        _write_scan(folder, series, seed=i, traps=i == 0, layout=layout)
        reading = _reading(i)
        if reading:
            _write_xml(root, folder, layout, f"{157 + i}", f"{158 + i:03d}.xml", reading)
    second = top / PATIENTS[1] / _folder(layout, 1, "3000999")
    scout = Series(patient=PATIENTS[1], name="scout", image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    write_ct(second / "1-001.dcm", scout, _stored(scout, 0), number=1, z_mm=0.0, sop_uid=uid("scout"))
    film = top / PATIENTS[0] / _folder(layout, 0, "3000822")
    radiograph = Series(patient=PATIENTS[0], name="dx", study="2", extra={"Modality": "DX"})
    write_ct(film / "1-001.dcm", radiograph, _stored(radiograph, 0), number=1, z_mm=0.0, sop_uid=uid("film"))
    _write_xml(root, film, layout, "185", "068.xml", _cxr(radiograph))
    return top


def _folder(layout: Layout, i: int, number: str) -> Path:
    if layout == "new":
        return Path(f"01-01-2000-NA-NA-{30178 + i}") / f"{number}.000000-NA-{3192 + i:05d}"
    return Path(f"01-01-2000-{30178 + i}") / f"{number}-{3192 + i:05d}"


def _stored(series: Series, seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.int16]]:
    stored = stored_of(body(1, seed=seed)[0], series.intercept)
    return stored.reshape(SIDE, SIDE)


def _write_scan(folder: Path, series: Series, *, seed: int, traps: bool, layout: Layout) -> None:
    values = body(N_POSITIONS + 1, seed=seed)
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    outside = np.hypot(x, y) > SIDE / 2
    jobs = [(p, False) for p in range(N_POSITIONS) if not (traps and p == MISSING)]
    jobs += [(TWICE, True)] if traps else []
    # files are named in no order of space
    names = np.random.default_rng(seed).permutation(len(jobs)) + 1
    for (position, again), name in zip(jobs, names, strict=True):
        stored = stored_of(values[N_POSITIONS if again else position], series.intercept)
        if traps:
            stored[outside] = -2000
        path = folder / (f"1-{name:03d}.dcm" if layout == "new" else f"{name:06d}.dcm")
        number = N_POSITIONS + 1 if again else position + 1
        write_ct(
            path, series, stored, number=number, z_mm=z_mm(position), sop_uid=sop(series, position, again)
        )


# readings -----------------------------------------------------------------------------------------
def circle(x: float, y: float, radius: float) -> str:
    """``edgeMap`` elements of a circle, each pixel once."""
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    points = dict.fromkeys((round(x + radius * np.cos(a)), round(y + radius * np.sin(a))) for a in angle)
    return "".join(f"<edgeMap><xCoord>{a}</xCoord><yCoord>{b}</yCoord></edgeMap>" for a, b in points)


def roi(series: Series, position: int, edge: str, *, inclusion: bool = True, again: bool = False) -> str:
    """A ``roi`` element."""
    return (
        f"<roi><imageZposition>{z_mm(position)}</imageZposition><imageSOP_UID>{sop(series, position, again)}"
        f"</imageSOP_UID><inclusion>{str(inclusion).upper()}</inclusion>{edge}</roi>"
    )


def nodule(name: str, ratings: Sequence[int], rois: str) -> str:
    """An ``unblindedReadNodule``; no ``ratings``: smaller than 3 mm."""
    inner = "".join(f"<{k}>{v}</{k}>" for k, v in zip(RATINGS, ratings, strict=bool(ratings)))
    told = f"<characteristics>{inner}</characteristics>" if ratings else ""
    return f"<unblindedReadNodule><noduleID>{name}</noduleID>{told}{rois}</unblindedReadNodule>"


def message(series_uid: str, sessions: Sequence[str]) -> str:
    """A whole ``LidcReadMessage``; an empty UID is left out."""
    header = f"<SeriesInstanceUid>{series_uid}</SeriesInstanceUid>" if series_uid else ""
    inner = "".join(
        f"<readingSession><annotationVersion>3.12</annotationVersion><servicingRadiologistID>anonymous"
        f"</servicingRadiologistID>{session}</readingSession>"
        for session in sessions
    )
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<LidcReadMessage uid="1.2.3" xmlns="{NAMESPACE}">'
        f"<ResponseHeader><Version>1.8.1</Version><TaskDescription>Second unblinded read</TaskDescription>"
        f"{header}</ResponseHeader>{inner}</LidcReadMessage>\n"
    )


def _reading(i: int) -> str:
    series = _SERIES[i]
    if i == 0:
        return message(series.series_uid, [_first(series, reader) for reader in range(4)])
    if i == 1:
        return message(series.series_uid, [""] * 4)
    if i == 2:
        x, y, radius = NODULE
        rois = "".join(roi(series, p, circle(x, y, radius)) for p in (4, 5, 6))
        rated = [(4, 1, 3, 4, 2, 1, 1, 1, 1), (4, 1, 3, 4, 2, 1, 1, 2, 2), (4, 1, 6, 4, 2, 1, 2, 2, 2)]
        return message("", [nodule(f"N{r}", rated[r], rois) if r < 3 else "" for r in range(4)])
    return ""


def _first(series: Series, reader: int) -> str:
    x, y, radius = NODULE
    x += reader % 2
    # the reader of 0 drew in the image that is a second one at its position
    rois = "".join(roi(series, p, circle(x, y, radius), again=reader == 0 and p == TWICE) for p in (4, 5, 6))
    if reader == 1:
        rois += roi(series, 5, circle(x, y, HOLE), inclusion=False)
    rated = (
        (5, 1, 6, 3, 4, 3, 5, 5, 4),
        (5, 1, 6, 3, 4, 3, 4, 5, 5),
        (4, 1, 6, 3, 4, 3, 4, 4, 4),
        (5, 1, 3, 3, 4, 3, 2, 5, 4),
    )
    marks = nodule(f"N{reader}", rated[reader], rois)
    if reader < 2:
        a, b, r = SECOND
        marks += nodule(f"M{reader}", (3, 1, 6, 3, 4, 2, 1, 3, 3), roi(series, 2, circle(a, b, r)))
        marks += nodule(f"S{reader}", (), roi(series, 10, circle(14, 36 + reader, 0)))
    if reader == 2:
        marks += nodule("L", (), roi(series, MISSING, circle(46, 40, 0)))
    if reader == 3:
        locus = "<locus><xCoord>46</xCoord><yCoord>24</yCoord></locus>"
        marks += (
            f"<nonNodule><nonNoduleID>X</nonNoduleID><imageZposition>{z_mm(9)}</imageZposition>"
            f"<imageSOP_UID>{sop(series, 9)}</imageSOP_UID>{locus}</nonNodule>"
        )
    return marks


def _cxr(series: Series) -> str:
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<IdriReadMessage uid="1.2.4" xmlns="http://www.nih.gov/idri">'
        f"<ResponseHeader><CTSeriesInstanceUid>{_SERIES[0].series_uid}</CTSeriesInstanceUid>"
        f"<CXRSeriesInstanceUid>{series.series_uid}</CXRSeriesInstanceUid></ResponseHeader>"
        "<CXRreadingSession><unblindedRead><noduleID>1</noduleID></unblindedRead></CXRreadingSession>"
        "</IdriReadMessage>\n"
    )


def _write_xml(root: Path, folder: Path, layout: Layout, number: str, name: str, text: str) -> None:
    path = folder / name if layout == "new" else root / "LIDC-XML-only" / "tcia-lidc-xml" / number / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
