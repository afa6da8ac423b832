"""Derived objects in one call, for tests."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset

from node.dicom.derivation import Derivation
from node.dicom.derive import Derived, derive
from node.dicom.part10 import write_part10
from node.dicom.pixels import decode
from tests.dicom_samples import NATIVE, how, part10, read


def made(
    ds: Dataset | bytes, plan: Derivation | None = None, *, syntax: str = NATIVE[1], **more: Any
) -> Derived:
    data = ds if isinstance(ds, bytes) else part10(ds, syntax)
    stored = decode(data)
    changed = np.where(stored > 0, stored - 1, stored).astype(stored.dtype)
    return derive(data, changed, plan or how(), **{"order": 0, **more})


def written(derived: Derived) -> bytes:
    out = io.BytesIO()
    write_part10(derived, out)
    return out.getvalue()


def derived(ds: Dataset | bytes, plan: Derivation | None = None, **more: Any) -> FileDataset:
    return read(written(made(ds, plan, **more)))
