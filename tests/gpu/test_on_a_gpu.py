"""On a GPU: every engine on every plan agrees with the reference, twice alike, within its bound of memory."""

from __future__ import annotations

import pytest

from engines.catalog import Catalog
from engines.runtime import flavour, gpu
from tests.gpu.parts import Asked, memory, parity, plans

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(1800)]

LEARNED = tuple(n for n in Catalog.default().names() if Catalog.default().models(n))


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """The plans of every engine, built for the GPU that is here."""
    if not gpu.local():
        pytest.skip("there is no GPU here")
    if not flavour.installed():
        pytest.skip("there is no TensorRT here")
    one = Asked(plans=tmp_path_factory.mktemp("plans") / "plans", engines=LEARNED, repeat=1)
    assert {o["state"] for o in plans(one)} == {"built"}
    return one


def test_every_plan_agrees_with_the_reference(asked: Asked) -> None:
    rows = [r for r in parity(asked) if r["runtime"] in flavour.FLAVOURS]
    assert {r["engine"] for r in rows} == set(LEARNED)
    assert not [r for r in rows if "refused" in r or not (r["ok"] and r["repeats"])]


def test_the_bound_of_memory_is_kept(asked: Asked) -> None:
    rows = memory(asked)
    assert rows
    assert not [r for r in rows if not r.get("ok")]
