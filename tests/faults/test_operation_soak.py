"""R60: a soak with a nemesis; see soak.py."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.faults.scale import count
from tests.faults.soak import Sample, Soak, _slope, tell
from tests.peers import needs


@pytest.mark.peer
@pytest.mark.timeout(7200)
def test_a_soak_loses_nothing_and_grows_nowhere(tmp_path: Path) -> None:
    needs("storescp")
    soak = Soak(folder=tmp_path, seconds=count(12, 3600), nemesis_s=count(4, 180))
    found = soak.run()
    tell(found)
    assert found.ok, found
    assert len(found.strokes) >= count(2, 6)
    assert found.acknowledged >= count(30, 15_000)


def test_a_slope_is_per_hour_and_needs_some_samples() -> None:
    def at(minutes: float) -> Sample:
        return Sample(at_s=60 * minutes, rss_mb=500 + minutes, fds=100, threads=20, tmp=0, processes=6)

    assert _slope([at(m) for m in range(30)], lambda s: s.rss_mb) == 60.0
    assert _slope([at(m) for m in range(30)], lambda s: s.fds) == 0.0
    assert math.isnan(_slope([at(0)], lambda s: s.fds))
