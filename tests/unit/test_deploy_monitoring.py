"""deploy/prometheus: what it scrapes and alarms of is what the node tells, and what its texts say to do can be done."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families as parsed
from ruamel.yaml import YAML

from node.app.health import Part
from node.cli.reference import verbs
from node.config.load import load
from node.config.schema import Config
from node.receive.counts import Counts
from node.store.figures import Figures, Happening, Place, Settled, Times, Waiting
from node.web.lookout import Look
from node.web.metrics import Disk, Once, Receiver, View
from node.web.totals import FAMILIES, Totals

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
NOW = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
PAGE = (ROOT / "docs" / "operations" / "monitoring.md").read_text()
SECRETS = {"DB_PASSWORD": "x"}


def yaml(name: str) -> Any:
    return YAML(typ="safe").load(DEPLOY / name)


@pytest.fixture(scope="module")
def config() -> Config:
    return load(DEPLOY / "config.compose.yaml", SECRETS).config


@pytest.fixture(scope="module")
def told(config: Config) -> dict[str, set[str]]:
    """Every sample that a node can tell, with its labels."""
    totals = Totals(place=Place(id=0, hash=""), settled=Settled(series=0))
    times = Times(last_received=NOW, closed=NOW, job_started=NOW, job_finished=NOW, sending=NOW)
    made = {
        "engine": {"name": "ct-cnn", "version": "1"}, "runtime": "onnx", "device": "cpu", "slices": 9, "skipped": 1,
        "seconds": {"total": 3.0, "decode": 1.0}, "refused": [{"runtime": "tensorrt", "kind": "missing"}],
    }  # fmt: skip
    sent = {"destination": "orthanc", "statuses": {"0000H": 9}}
    happenings = [
        ("series.routed", {"decision": {"rule": "CT", "action": "enhance"}}),
        ("series.derived", made),
        ("series.delivered", sent),
        ("originals.delivered", {**sent, "originals_of": 1}),
        ("delivery.failed", sent),
        ("job.held", {"job": 1}),
        ("of a later version", {}),
    ]
    totals.count(
        [
            Happening(id=n, at=NOW, kind=kind, body=body, engine="ct-cnn", times=times)
            for n, (kind, body) in enumerate(happenings, 1)
        ],
        Place(id=len(happenings), hash="x"),
    )
    figures = Figures(
        instances=9, n_bytes=9, settled=totals.settled, series={"OPEN": 1}, jobs={("ct-cnn", "HELD"): 1},
        oldest_job=NOW, commitments={"GIVEN_UP": 1}, pledges={("pacs", "GIVEN_UP"): 1},
        deliveries={("orthanc", False, "PENDING"): Waiting(n=1, oldest=NOW)},
    )  # fmt: skip
    counts = Counts()
    counts.add("door", "assoc.fault")
    promises = config.node.commitment.model_copy(update={"promise": "held"})
    view = View(
        config=config.model_copy(update={"node": config.node.model_copy(update={"commitment": promises})}),
        parts=[
            Part(role="gather", name="configuration", told="refused", vital=False),
            Part(role="gather", name="destination orthanc", told="", vital=False),
        ],
        receivers=[Receiver(name="receive", associations=1, counts=counts.told())],
        disk=Disk(free=9, size=99, refuse_below=1, reject_below=2),
        unfit=["host"],
        look=Look(at=0.0, figures=figures, totals=totals, kept_bytes=9),
        now=NOW,
    )
    found: dict[str, set[str]] = {}
    for family in parsed(generate_latest(Once(view)).decode()):
        for one in family.samples:
            found.setdefault(one.name, set()).update(one.labels)
    return found


def test_every_metric_is_told_of_once_in_a_while_and_is_on_the_page(told: dict[str, set[str]]) -> None:
    for name, family in FAMILIES.items():
        sample = f"{name}_bucket" if family.bounds else f"{name}_total"
        assert set(family.labels) <= told[sample], name
    documented = set(re.findall(r"`(luminode_\w+)`", PAGE))
    plain = {re.sub(r"_(bucket|sum|count)$", "", name) if "seconds_" in name else name for name in told}
    assert plain - documented == set(), "not on the page"
    assert documented - plain == set(), "on the page, and nowhere else"


def test_every_alert_asks_for_what_there_is(told: dict[str, set[str]]) -> None:
    alerts = [rule for group in yaml("prometheus/alerts.yml")["groups"] for rule in group["rules"]]
    assert len(alerts) > 15
    assert len({a["alert"] for a in alerts}) == len(alerts)
    for alert in alerts:
        assert set(alert) <= {"alert", "expr", "for", "labels", "annotations"}
        assert set(alert["annotations"]) == {"summary", "description"}
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert re.fullmatch(r"\d+[smh]", alert.get("for", "1m"))
        names = set(re.findall(r"\bluminode_\w+", alert["expr"]))
        assert names or 'up{job="luminode"}' in alert["expr"]
        assert names <= set(told), alert["alert"]
        labels = set(re.findall(r"[{,]\s*(\w+)\s*[=!]~?", alert["expr"]))
        labels |= {x for by in re.findall(r"by \(([^)]*)\)", alert["expr"]) for x in re.split(r",\s*", by)}
        there = {"instance", "job"}.union(*(told[name] for name in names))
        assert labels <= there, alert["alert"]
        used = set(re.findall(r"\$labels\.(\w+)", " ".join(alert["annotations"].values())))
        assert used <= there, alert["alert"]
        if "by (" in alert["expr"]:
            assert used <= labels, "what is summed over is told no more"


def test_what_alerts_say_to_do_can_be_done() -> None:
    known = {v.name for v in verbs()}
    text = (DEPLOY / "prometheus" / "alerts.yml").read_text()
    said = re.findall(r"luminode ((?:jobs|deliveries|series) list|health|check|echo)\b", text)
    assert len(said) > 5
    assert set(said) <= known
    assert set(re.findall(r"\bluminode ([a-z]+)\b", text)) <= {v.split()[0] for v in known}
    for path in re.findall(r"docs/[\w/.]+\.md", text):
        assert (ROOT / path).is_file()


def test_prometheus_scrapes_where_the_node_of_compose_listens(config: Config) -> None:
    scrape = yaml("prometheus/prometheus.yml")
    (job,) = scrape["scrape_configs"]
    (targets,) = job["static_configs"]
    listen = config.monitoring.listen
    assert listen is not None
    assert targets["targets"] == [f"node:{listen.port}"]
    assert (job["job_name"], job["metrics_path"]) == ("luminode", "/metrics")
    assert config.monitoring.admits("172.18.0.3"), "an address as Docker gives it"
    assert not config.monitoring.admits("10.1.2.3")

    override, compose = yaml("compose.monitoring.yaml"), yaml("compose.yaml")
    node, prometheus = override["services"]["node"], override["services"]["prometheus"]
    assert set(override["services"]) == {"node", "prometheus"}
    assert set(node) == {"networks"}
    assert set(node["networks"]) == {*compose["services"]["node"]["networks"], "monitoring"}
    assert prometheus["networks"] == ["monitoring"], "it sees neither the database nor the scanners' network"
    assert not any(str(listen.port) in port for port in compose["services"]["node"]["ports"])
    assert all(port.startswith("127.0.0.1:") for port in prometheus["ports"])
    assert (prometheus["read_only"], prometheus["cap_drop"]) == (True, ["ALL"])
    assert prometheus["security_opt"] == ["no-new-privileges:true"]
    assert int(prometheus["user"].split(":")[0]) > 0
    assert prometheus["image"].rpartition(":")[2] not in ("", "latest")
    (folder,) = (v for v in prometheus["volumes"] if v["type"] == "bind")
    for path in (prometheus["command"][0].partition("=")[2], *scrape["rule_files"]):
        assert path.startswith(folder["target"])
        assert (DEPLOY / folder["source"] / Path(path).name).is_file()
