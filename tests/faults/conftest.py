"""With the full counts a test takes as long as it takes: the runner's limit for a test is for ``make test``."""

from __future__ import annotations

import pytest

from tests.faults.scale import FULL

LONGEST_S = 2 * 3600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FULL and "tests/faults" in item.path.as_posix():
            item.add_marker(pytest.mark.timeout(LONGEST_S), append=False)
