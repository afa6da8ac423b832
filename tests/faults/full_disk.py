"""What a full disk leaves possible (R52): run by a test inside a small tmpfs of its own, prints JSON.

``python -m tests.faults.full_disk FOLDER``
"""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from node.errors import OutOfSpace, StoreError
from node.store import Store
from tests.storing import received


def fill(path: Path) -> None:
    """A stranger's file that takes whatever is left."""
    piece = b"\1" * 65536
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while piece:
            try:
                os.write(descriptor, piece)
            except OSError:
                piece = piece[: len(piece) // 2]
    finally:
        os.close(descriptor)


def main(folder: Path) -> dict[str, Any]:
    now = datetime.now(UTC)
    told: dict[str, Any] = {}
    with Store.open(f"sqlite:///{folder}/luminode.db", folder / "spool") as store:
        assert store.database.reserve is not None
        store.database.reserve.size = 4 * 1024 * 1024
        told["kept"] = store.database.reserve.keep()
        ones = [received(store, n) for n in range(2000)]
        store.reception.record(ones[:100])
        fill(folder / "foreign")
        acknowledged = list(ones[:100])
        told["refused"] = ""
        for n in range(100, 2000, 20):
            try:
                store.reception.record(ones[n : n + 20])
            except OutOfSpace as error:
                told["refused"] = error.hint
                break
            except StoreError as error:
                told["refused"] = f"wrong: {error.message}"
                break
            acknowledged += ones[n : n + 20]
        told["kept_after"] = store.database.reserve.kept
        store.events.add("error", "disk.filled", {"told": "x" * 2000}, now)
        told["event"] = [e.name for e in store.events.list(name="disk.filled")]
    with Store.open(f"sqlite:///{folder}/luminode.db", folder / "spool") as store:
        held = {i.sop_instance_uid for s in store.series.list() for i in store.series.instances(s.id)}
        told["lost"] = len({one.sop_instance_uid for one in acknowledged} - held)
        (folder / "foreign").unlink()
        told["again"] = [r.kind for r in store.reception.record(ones[1980:])].count("new")
        assert store.database.reserve is not None
        store.database.reserve.size = 4 * 1024 * 1024
        told["kept_again"] = store.database.reserve.keep()
    return told


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
