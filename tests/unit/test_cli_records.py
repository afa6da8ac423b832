"""series, jobs, deliveries, provenance: the verbs on what is on record, made through the store's own API."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from node.model import DeliveryState, JobState, Outcome, SeriesState
from node.store import Store
from tests.cli import luminode
from tests.storing import NOW, after, closed_series, delivered, outbox, queued, received


@pytest.fixture
def store(site_store: Store) -> Store:
    return site_store


def columns(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines()]


# series -------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("site_store")
@pytest.mark.parametrize("group", ["series", "jobs", "deliveries"])
def test_nothing_yet(group: str) -> None:
    assert luminode(group, "list").out == f"no {group} yet\n"
    assert luminode(group, "list", "--json").json == []


def test_series_are_listed_one_a_line_with_their_uid_whole(store: Store) -> None:
    store.reception.record([received(store, 1, series=1)])
    queued(store, series=2)
    told = luminode("series", "list")
    assert told.status == 0
    head, second, first = told.out.splitlines()
    assert head.split("  ")[0] == "id"
    assert second.split()[:5] == ["2", "ROUTED", "3", "1", "CT1"]
    assert second.split()[-4:] == ["count", "enhance:", "chest", "1.2.3.2"]
    assert first.split()[:3] == ["1", "OPEN", "1"]
    assert first.rstrip().endswith("1.2.3.1")
    assert [s["id"] for s in luminode("series", "list", "-s", "open", "--json").json] == [1]
    assert [s["id"] for s in luminode("series", "list", "-n", "1", "--json").json] == [2]


def test_a_series_is_shown_with_its_decision_and_its_jobs(store: Store) -> None:
    job = queued(store)
    told = luminode("series", "show", 1)
    assert told.status == 0
    facts = dict(line.split(None, 1) for line in told.out.splitlines() if line and "  " in line)
    assert facts["state"] == "ROUTED"
    assert "by rule chest  rule matched" in told.out
    assert ["chest", "Modality", "CT", "CT", "yes"] in columns(told.out)
    assert [str(job), "QUEUED", "ct-nlm", "0"] in columns(told.out)
    shown = luminode("series", "show", 1, "--json").json
    assert shown["decision"]["verdicts"][0]["keyword"] == "Modality"
    assert [j["id"] for j in shown["jobs"]] == [job]


def test_a_series_is_routed_again(store: Store) -> None:
    queued(store)
    assert luminode("series", "retry", 1).out == "series 1 will be routed again\n"
    one = store.series.get(1)
    assert one is not None
    assert one.state is SeriesState.CLOSED
    assert "series.retried" in luminode("series", "show", 1).out


def test_an_open_series_is_not_routed_again(store: Store) -> None:
    store.reception.record([received(store, 1)])
    told = luminode("series", "retry", 1)
    assert told.status == 1
    assert "(it is OPEN)" in told.err
    assert told.err.count("\n") == 2


def test_cancelling_a_series_cancels_all_that_is_not_done(store: Store) -> None:
    outbox(store, destinations=("pacs", "archive"))
    assert luminode("series", "cancel", 1).out == "series 1: 2 cancelled\n"
    assert {d.state for d in store.deliveries.list()} == {DeliveryState.CANCELLED}
    assert luminode("series", "cancel", 1).out == "series 1: 0 cancelled\n"
    queued(store, series=2)
    assert luminode("series", "cancel", 2).out == "series 2: 1 cancelled\n"


@pytest.mark.usefixtures("site_store")
@pytest.mark.parametrize("verb", ["show", "retry", "cancel"])
@pytest.mark.parametrize(
    ("group", "one"), [("series", "series"), ("jobs", "job"), ("deliveries", "delivery")]
)
def test_a_number_that_is_not_there(group: str, one: str, verb: str) -> None:
    told = luminode(group, verb, 7)
    assert told.status == 1
    assert told.out == ""
    assert told.err == (f"error there is no {one} 7\n      `luminode {group} list` shows those there are\n")


def test_what_came_over_the_network_cannot_upset_a_terminal(store: Store) -> None:
    store.reception.record([received(store, 1, calling_ae="\x1b[31mCT[red]\x9b")])
    told = luminode("series", "list")
    assert "?[31mCT[red]?" in told.out
    assert luminode("series", "list", "--json").json[0]["key"]["calling_ae"] == "\x1b[31mCT[red]\x9b"
    assert luminode("series", "list", "--json").out.isascii()


# jobs ---------------------------------------------------------------------------------------------
def test_jobs_are_listed_and_shown(store: Store) -> None:
    queued(store, series=1)
    queued(store, series=2)
    job = store.jobs.claim("w", 30, NOW)
    assert job is not None
    assert store.jobs.heartbeat(job.id, "w", job.attempt, after(30), {"decode": 1.0, "enhance": 0.25})
    assert [line[:5] for line in columns(luminode("jobs", "list").out)[1:]] == [
        ["2", "QUEUED", "2", "chest", "ct-nlm"], ["1", "RUNNING", "1", "chest", "ct-nlm"],
    ]  # fmt: skip
    assert [j["id"] for j in luminode("jobs", "list", "--state", "queued", "--json").json] == [2]
    told = luminode("jobs", "show", 1)
    assert "decode 100%, enhance 25%" in told.out
    assert "strength" in told.out
    assert luminode("jobs", "show", 1, "--json").json["job"]["job"]["state"] == "RUNNING"


def test_a_job_that_is_held_is_retried_and_cancelled(store: Store) -> None:
    queued(store)
    job = store.jobs.claim("w", 30, NOW)
    assert job is not None
    assert store.jobs.fail(job.id, "w", job.attempt, state=JobState.HELD, failure="a guard broke", at=NOW)
    assert "a guard broke" in luminode("jobs", "show", 1).out
    assert luminode("jobs", "retry", 1).out == "job 1 is queued\n"
    assert luminode("jobs", "retry", 1).status == 1
    assert luminode("jobs", "cancel", 1).out == "job 1 is cancelled\n"
    one = store.jobs.get(1)
    assert one is not None
    assert one.state is JobState.CANCELLED
    assert luminode("jobs", "retry", 1).status == 0


def test_all_that_is_held_is_retried_at_once(store: Store) -> None:
    for series in (1, 2, 3):
        queued(store, series=series)
    for _ in range(2):
        job = store.jobs.claim("w", 30, NOW)
        assert job is not None
        store.jobs.fail(job.id, "w", job.attempt, state=JobState.HELD, failure="the GPU is lost", at=NOW)
    assert luminode("jobs", "retry").status == 2
    assert luminode("jobs", "retry", 1, "--held").status == 2
    assert luminode("jobs", "retry", "--held").out == "2 jobs are queued\n"
    assert store.jobs.counts() == {JobState.QUEUED: 3}
    assert luminode("jobs", "retry", "--held").out == "0 jobs are queued\n"


def test_a_job_that_is_done_is_not_cancelled(store: Store) -> None:
    outbox(store)
    told = luminode("jobs", "cancel", 1)
    assert told.status == 1
    assert "(it is DONE)" in told.err
    shown = luminode("jobs", "show", 1).out
    assert "derived instances   3" in shown
    assert "progress" not in shown


# deliveries ---------------------------------------------------------------------------------------
def test_deliveries_are_listed_with_what_is_done(store: Store) -> None:
    outbox(store)
    delivery = store.deliveries.claim("w", 30, NOW)
    assert delivery is not None
    done = delivered(store, delivery, "w")
    refused = Outcome(
        sop_instance_uid=done[2].sop_instance_uid, status=0xA900, done=False, retryable=False, comment="[no]"
    )
    store.deliveries.record_outcomes(delivery.id, "w", delivery.attempt, [*done[:2], refused])
    assert store.deliveries.retry_later(delivery.id, "w", delivery.attempt, after(60), "1 instance refused")
    row = columns(luminode("deliveries", "list").out)[1]
    assert row[:6] == ["1", "PENDING", "pacs", "derived", "2/3", "1"]
    assert luminode("deliveries", "list", "--json").json[0]["n_done"] == 2
    told = luminode("deliveries", "show", 1)
    assert "2 of 3" in told.out
    assert [refused.sop_instance_uid, "A900H", "[no]"] in columns(told.out)
    shown = luminode("deliveries", "show", 1, "--json").json
    assert len(shown["outcomes"]) == 3


def test_originals_are_listed_among_deliveries_and_with_their_series(store: Store) -> None:
    forward = {"archive": {"kind": "folder", "path": "out"}}
    series_id = store.reception.record([received(store, 1)], forward=forward)[0].series_id
    assert f"originals of series {series_id}" in luminode("deliveries", "list").out
    assert "0 of 1" in luminode("deliveries", "show", 1).out
    shown = luminode("series", "show", series_id)
    assert "originals to" in shown.out
    assert "archive" in shown.out
    assert luminode("series", "show", series_id, "--json").json["originals"][0]["destination"] == "archive"
    assert "delivery 1 to archive: PENDING" in luminode("provenance", "1.2.3.1.1").out
    assert luminode("series", "cancel", series_id).out == f"series {series_id}: 0 cancelled\n"
    assert luminode("deliveries", "cancel", 1).out == "delivery 1 is cancelled\n"


def test_a_delivery_is_cancelled_and_sent_again(store: Store) -> None:
    outbox(store)
    assert luminode("deliveries", "cancel", 1).out == "delivery 1 is cancelled\n"
    assert luminode("deliveries", "cancel", 1).status == 1
    assert luminode("deliveries", "retry", 1).out == "delivery 1 is pending\n"
    told = luminode("deliveries", "retry", 1)
    assert told.status == 1
    assert "(it is PENDING)" in told.err


def test_what_waits_is_sent_to_where_the_configuration_has_it_now(store: Store) -> None:
    outbox(store)
    told = luminode("deliveries", "readdress", "pacs")
    assert told.out == "1 deliveries and 0 jobs of pacs have its address of now\n"
    assert "goes to" in luminode("deliveries", "show", 1).out
    assert luminode("deliveries", "readdress", "pacs").out.startswith("0 deliveries")
    assert luminode("deliveries", "readdress", "nowhere").status == 2


# provenance ---------------------------------------------------------------------------------------
def test_the_story_of_a_derived_uid_begins_at_its_source(store: Store) -> None:
    outbox(store)
    derived = store.deliveries.derived(1)
    assert derived is not None
    source = derived.instances[0].source_sop_instance_uid
    for uid in (derived.series_uid, derived.instances[0].sop_instance_uid, source, "1.2.3.1", "1.2.3"):
        told = luminode("provenance", uid)
        assert told.status == 0
        assert "source series 1.2.3.1, generation 1" in told.out
        assert "enhance by rule chest. rule matched" in told.out
        assert f"3 instances in series {derived.series_uid}" in told.out
        assert "1 to pacs: PENDING" in told.out
        story = luminode("provenance", uid, "--json").json
        assert [j["id"] for j in story["jobs"]] == [1]
        assert story["decisions"]["1"]["rule"] == "chest"
    assert "made from" in luminode("provenance", derived.instances[0].sop_instance_uid).out


def test_a_uid_that_nobody_knows(store: Store) -> None:
    outbox(store)
    told = luminode("provenance", "1.2.999")
    assert (told.status, told.out) == (1, "nothing is known of that UID\n")
    assert luminode("provenance", "1.2.999", "--json").status == 1


def test_the_chain_is_verified(store: Store) -> None:
    outbox(store)
    told = luminode("provenance", "--verify")
    n = luminode("provenance", "--verify", "--json").json["checked"]
    assert n > 0
    assert (told.status, told.out) == (0, f"the chain holds: {n} records\n")


def tamper(site: Path) -> None:
    """Whoever has the file can go around the triggers."""
    with sqlite3.connect(site / "luminode.db") as connection:
        triggers = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for (name,) in triggers:
            connection.execute(f'DROP TRIGGER "{name}"')
        connection.execute("UPDATE provenance SET kind = 'series.ignored' WHERE id = 2")
    connection.close()


def test_a_tampered_chain_is_found(site: Path, store: Store) -> None:
    for n in range(3):
        store.provenance.append("series.derived", [f"1.2.{n}"], {"n": n}, NOW)
    tamper(site)
    told = luminode("provenance", "--verify")
    assert told.status == 1
    assert told.out == "record 2 does not hold: the columns do not match the document\n"
    report: dict[str, Any] = luminode("provenance", "--verify", "--json").json
    assert (report["ok"], report["checked"], report["first_bad"]) == (False, 1, 2)
    told = luminode("check", "--offline")
    assert told.status == 1
    assert "FAIL provenance" in told.out
    assert "`luminode provenance --verify` tells which record" in told.out


def test_events_of_a_series_are_shown(store: Store) -> None:
    closed = closed_series(store)
    store.events.add(
        "warning", "late.instances", {"n": 2}, datetime(2026, 1, 1, tzinfo=UTC), series_id=closed
    )
    assert "warning late.instances {'n': 2}" in luminode("series", "show", closed).out


def test_a_retry_says_which_deliveries_it_does_not_bring_back(store: Store) -> None:
    outbox(store, destinations=("archive", "pacs"))
    assert luminode("jobs", "retry", 1).out == "job 1 is queued\n"
    store.jobs.cancel(1, NOW)
    assert luminode("series", "cancel", 1).out == "series 1: 2 cancelled\n"
    stays = "".join(
        f"delivery {n} to {name} stays CANCELLED: `luminode deliveries retry {n}` sends it\n"
        for n, name in ((2, "pacs"), (1, "archive"))
    )
    assert luminode("series", "retry", 1).out == f"series 1 will be routed again\n{stays}"
    assert luminode("jobs", "retry", 1).out == f"job 1 is queued\n{stays}"
