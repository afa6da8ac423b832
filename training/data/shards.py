"""Shards: stacks on disk as uint16 arrays and one index, read by memory map, patch by patch.

::

    folder/index.json      [{"name", "scale", "offset", "spacing_mm", "kind", ...}, ...]
    folder/NAME.npy        uint16 (z, y, x); value = stored * scale + offset

A shard is written under another name and renamed, the index last, so that a trainer may read a folder that is
still being filled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.errors import DataError

Floats = npt.NDArray[np.float32]

LARGEST = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One stack.

    Attributes
    ----------
    stored
        uint16 (z, y, x), memory-mapped.
    facts
        What the index says beside: kind, patient key, noise.
    """

    name: str
    stored: npt.NDArray[np.uint16]
    scale: float
    offset: float
    spacing_mm: tuple[float, float, float]
    facts: Mapping[str, Any]

    def crop(self, z: slice, y: slice, x: slice) -> Floats:
        """Return float32 values of a part."""
        part = self.stored[z, y, x].astype(np.float32)
        return np.asarray(part * np.float32(self.scale) + np.float32(self.offset), np.float32)

    @property
    def shape(self) -> tuple[int, int, int]:
        z, y, x = self.stored.shape
        return (z, y, x)


class Writer:
    """Adds shards to a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._rows: list[dict[str, Any]] = _index(folder) if (folder / "index.json").exists() else []

    @property
    def names(self) -> frozenset[str]:
        return frozenset(str(row["name"]) for row in self._rows)

    def add(
        self,
        name: str,
        values: Floats,
        spacing_mm: tuple[float, float, float],
        *,
        span: tuple[float, float] | None = None,
        **facts: Any,
    ) -> None:
        """Write one stack; values outside of ``span`` (default: their own range) are clipped."""
        low, high = span if span is not None else (float(values.min()), float(values.max()))
        scale = max(high - low, 1e-6) / LARGEST
        stored = np.rint(np.clip((values - low) / scale, 0, LARGEST)).astype(np.uint16)
        path = self._folder / f"{name}.npy"
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.save(file, stored)
        part.replace(path)
        row = {"name": name, "scale": scale, "offset": low, "spacing_mm": list(spacing_mm), **facts}
        self._rows.append(row)
        index = self._folder / "index.part"
        index.write_text(json.dumps(self._rows, indent=0) + "\n")
        index.replace(self._folder / "index.json")


def _index(folder: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads((folder / "index.json").read_text())
    except (OSError, ValueError) as e:
        raise DataError(
            f"{folder.name}: the index of the shards cannot be read",
            hint="make them with `python -m training shards`",
        ) from e
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{folder.name}: there are no shards in it")
    return rows


def read(folder: Path) -> tuple[Shard, ...]:
    """Open all shards of a folder.

    Raises
    ------
    DataError
        No index, or a shard is missing or of another kind.
    """
    found = []
    for row in _index(folder):
        try:
            stored = np.load(folder / f"{row['name']}.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, KeyError) as e:
            raise DataError(f"{folder.name}: a shard of the index cannot be read") from e
        if stored.dtype != np.uint16 or stored.ndim != 3:
            raise DataError(f"{folder.name}: a shard is not uint16 (z, y, x)")
        z, y, x = row["spacing_mm"]
        known = ("name", "scale", "offset", "spacing_mm")
        found.append(
            Shard(
                name=str(row["name"]),
                stored=stored,
                scale=float(row["scale"]),
                offset=float(row["offset"]),
                spacing_mm=(float(z), float(y), float(x)),
                facts={k: v for k, v in row.items() if k not in known},
            )
        )
    return tuple(found)
