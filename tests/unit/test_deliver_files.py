"""What is read of a file before it is sent: little, wherever it lies."""

from __future__ import annotations

import struct
from dataclasses import asdict
from pathlib import Path

import pytest

from node.deliver.files import read_parcel
from node.dicom.parse import MalformedError
from node.dicom.scan import scan_file
from node.errors import HeaderFault, StoreError
from tests.parcels import CT, EXPLICIT, STUDY, ct, part10

DEFLATED = "1.2.840.10008.1.2.1.99"
IMPLICIT = "1.2.840.10008.1.2"


def _with_private(data: bytes, n: int) -> bytes:
    """A file whose meta information holds ``n`` bytes of somebody's own (PS3.10 7.1)."""
    end = 144 + int.from_bytes(data[140:144], "little")
    private = struct.pack("<HH2sH", 2, 0x100, b"UI", 6) + b"1.2.3\0"
    private += struct.pack("<HH2sHL", 2, 0x102, b"OB", 0, n) + bytes(n)
    return data[:140] + struct.pack("<L", end - 144 + len(private)) + data[144:end] + private + data[end:]


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, DEFLATED])
@pytest.mark.parametrize("n_meta", [0, 15_000, 16_000, 100_000])
@pytest.mark.parametrize("n_before", [0, 15_600, 70_000])
def test_the_uids_are_found_however_far_back_they_lie(
    tmp_path: Path, syntax: str, n_meta: int, n_before: int
) -> None:
    ds = ct(3)
    if n_before:
        ds.add_new(
            0x00091010,
            "UT" if syntax != IMPLICIT else "UN",
            "x" * n_before if syntax != IMPLICIT else b"x" * n_before,
        )
    data = part10(ds, syntax)
    if n_meta:
        data = _with_private(data, n_meta)
    path = tmp_path / "a.dcm"
    path.write_bytes(data)
    parcel = read_parcel(path)
    assert parcel.size == len(data)
    assert (parcel.sop_class_uid, parcel.sop_instance_uid) == (CT, f"{STUDY}.7.3")
    assert (parcel.transfer_syntax_uid, parcel.series_uid) == (syntax, f"{STUDY}.7")
    assert asdict(scan_file(path, parcel.offset, syntax))["study_uid"] == STUDY


def test_a_path_is_told_without_links_and_looked_up_once_for_a_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.dcm").write_bytes(part10(ct(1)))
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    (tmp_path / "link.dcm").symlink_to(tmp_path / "folder" / "a.dcm")
    folders: dict[str, str] = {}
    for path in (tmp_path / "real" / "a.dcm", tmp_path / "folder" / "a.dcm", tmp_path / "link.dcm"):
        assert read_parcel(path, folders).path == path.resolve() == read_parcel(path).path
    assert len(folders) == 2


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", MalformedError),
        (b"\0" * 20_000, MalformedError),
        (part10(ct(1))[:200], MalformedError),
        (part10(ct(1))[:400], HeaderFault),
    ],
)
def test_what_is_no_part_10_file_is_refused(tmp_path: Path, data: bytes, error: type[Exception]) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(data)
    with pytest.raises(error):
        read_parcel(path)
    with pytest.raises((OSError, StoreError)):
        read_parcel(tmp_path)
