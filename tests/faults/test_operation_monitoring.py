"""The pages of a whole node: they tell what was sent, and nothing that befalls them touches who receives."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families as parsed

from tests.faults.site import Shift, child, settle, site
from tests.faults.test_operation_health import ask
from tests.peers import HOST, free_port, wait_until
from tests.pipeline.harness import Node

pytestmark = pytest.mark.timeout(600)


def samples(port: int) -> dict[str, float]:
    """Values by name, summed over labels."""
    found: dict[str, float] = {}
    for family in parsed(ask(port, "/metrics")[1]):
        for one in family.samples:
            found[one.name] = found.get(one.name, 0.0) + one.value
    return found


def on_its_page(node: Node) -> str:
    with contextlib.suppress(OSError, ValueError):
        return str(json.loads((node.folder / "spool" / "health" / "web.json").read_bytes())["parts"]["page"])
    return ""


def test_the_pages_tell_what_was_sent_and_nobody_needs_them(tmp_path: Path) -> None:
    """Two receivers; the port of the pages is taken at first, and their process is killed at the end."""
    web = free_port()
    node = site(tmp_path / "node", web=web, quiet_after="1s")
    node.config.write_text(node.config.read_text().replace("node: {", "node: {receivers: 2, "))
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((HOST, web))
        other.listen()
        node.start()
        with Shift(node, n=2, per_s=100, n_slices=6) as shift:
            wait_until(
                lambda: shift.n_acknowledged >= 30, 120, "it receives, whoever has the port of the pages"
            )
        assert not shift.broken
        wait_until(lambda: "cannot listen" in on_its_page(node), 60, "it is told")
    try:
        assert settle(node, shift.log).even
        n = shift.n_acknowledged

        def told() -> bool:
            return samples(web).get("luminode_delivered_instances_total") == n

        wait_until(told, 60, f"{n} are told: {samples(web)}", every_s=0.3)
        found = samples(web)
        size = sum(p.stat().st_size for p in (node.folder / "spool").glob("[0-9a-f][0-9a-f]/*"))
        for name, value in {
            "luminode_instances_received_total": n,
            "luminode_received_bytes_total": size,
            "luminode_enhanced_slices_total": n,
            "luminode_enhanced_series_total": n / 6,
            "luminode_deliveries": 0,
            "luminode_instances_refused_total": 0,
        }.items():
            assert found[name] == value, name
        wait_until(
            lambda: samples(web)["luminode_associations_accepted_total"] == _accepted(node), 60,
            "both receivers' associations are told", every_s=0.3,
        )  # fmt: skip
        text = ask(web, "/metrics")[1] + ask(web, "/readyz")[1]
        for canary in (*shift.log.sent, "1.2.826", "2.25.", "PHANTOM", "Phantom"):
            assert canary not in text
        assert re.search(
            r'luminode_enhanced_series_total{device="cpu",engine="identity",runtime="identity",', text
        )

        victim = child(node, "web")
        assert victim is not None
        victim.send_signal(signal.SIGKILL)
        psutil.wait_procs([victim], timeout=30)
        wait_until(lambda: ask(web, "/healthz")[0] == 200, 120, "they are there again", every_s=0.2)
        wait_until(told, 60, "the counters go on", every_s=0.3)
        assert samples(web)["luminode_instances_received_total"] == n
    finally:
        node.stop()
    assert ask(web, "/healthz")[0] == 0, "a node that does not run has no pages"


def _accepted(node: Node) -> int:
    from sqlalchemy import func, select

    from node.store.tables import AssociationRow

    with node.store() as store, store.database.read() as connection:
        return connection.execute(select(func.count()).select_from(AssociationRow)).scalar_one()
