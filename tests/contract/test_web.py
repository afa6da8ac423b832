"""The pages over real sockets: nobody who asks can hold up another, whatever he does, and none learns of a patient."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as parsed

from node.app.health import Part
from node.config.load import parse
from node.config.schema import Config
from node.errors import MonitoringError
from node.store import Store
from node.store.db import Database
from node.web import lookout, server, totals
from node.web.lookout import Lookout
from node.web.server import LARGEST, MOST, STRANGERS, Answer, Server
from node.web.site import Site
from tests.peers import HOST, free_port, wait_until
from tests.postgres import Server as Postgres
from tests.postgres import told
from tests.storing import NOW, delivered, made, outbox, queued, received

CONFIG = """\
node: {{accept_from: any}}
store: {{spool: "{spool}", database: "{database}", refuse_below: 100MB}}
engines: {{ct: {{engine: ct-nlm}}}}
destinations: {{pacs: {{kind: folder, path: outbox}}}}
rules: [{{name: chest, when: any, enhance: ct, send_to: [pacs]}}]
monitoring: {{listen: "127.0.0.1:{port}"}}
"""
REFUSED = ({"runtime": "tensorrt_rtx", "kind": "memory", "because": "Doe^Jane"},)
HELLO = Answer(status=HTTPStatus.OK, kind="text/plain", body=b"hello")


def ask(
    port: int, path: str, method: str = "GET", **headers: str
) -> tuple[int, str, http.client.HTTPMessage]:
    with contextlib.closing(http.client.HTTPConnection(HOST, port, timeout=60)) as connection:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.headers


@contextmanager
def running(work: Callable[[threading.Event], None]) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=work, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive(), "it does not end"


@contextmanager
def serving(admits: Callable[[str], bool] = lambda _address: True) -> Iterator[int]:
    one = Server(HOST, 0, page={"/": lambda _accept: HELLO, "/broken": _broken}.get, admits=admits)
    port = one.port
    with running(one.serve):
        yield port


def _broken(_accept: str) -> Answer:
    raise ValueError("Doe^Jane")


# the server ---------------------------------------------------------------------------------------
def test_it_answers_get_and_head_and_nothing_else() -> None:
    with serving() as port:
        status, body, headers = ask(port, "/?x=1")
        assert (status, body, headers["Content-Type"]) == (200, "hello", "text/plain")
        assert (headers["Server"], headers["Cache-Control"], headers["Content-Length"]) == (
            "Luminode", "no-store", "5",
        )  # fmt: skip
        assert ask(port, "/", "HEAD")[:2] == (200, "")
        assert ask(port, "/../etc/passwd")[0] == 404
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            assert ask(port, "/", method)[0] == 405
        assert ask(port, "/", "BREW")[0] == 501
        status, body, _ = ask(port, "/broken")
        assert (status, "Doe" in body) == (500, False)


def test_a_connection_is_never_kept() -> None:
    with serving() as port, socket.create_connection((HOST, port), 60) as peer:
        peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\nGET / HTTP/1.1\r\n\r\n")
        told = b""
        while piece := peer.recv(4096):
            told += piece
        assert told.count(b"hello") == 1


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * LARGEST, b"431"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/9.9\r\n\r\n", b"505"),
        (b"GET / HTTP/1.1\r\nA: b\r\n\r\n", b"200"),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"400"),
    ],
    ids=["too large", "no request", "another version", "a request", "TLS"],
)
def test_whatever_is_said_is_answered_by_the_book(said: bytes, status: bytes) -> None:
    with serving() as port, socket.create_connection((HOST, port), 60) as peer:
        peer.sendall(said)
        assert peer.recv(4096)[:12] == b"HTTP/1.0 " + status


def test_those_who_drip_hold_up_nobody() -> None:
    """As many as there are places, and as many again: each newcomer is answered, and the oldest make room."""
    with serving() as port, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection((HOST, port), 60)) for _ in range(2 * MOST)]
        for peer in slow:
            with contextlib.suppress(OSError):  # of the first some are gone by now
                peer.sendall(b"GET / HTTP/1.1\r\nX: ")
        for _ in range(5):
            assert ask(port, "/")[0] == 200
        slow[0].settimeout(60)
        with contextlib.suppress(ConnectionResetError):
            assert slow[0].recv(1) == b"", "it made room"
        assert sum(t.name == "web" for t in threading.enumerate()) <= MOST + 1


def test_a_request_has_a_deadline_however_it_drips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "TIME_S", 0.3)
    with serving() as port, socket.create_connection((HOST, port), 60) as peer:
        with contextlib.suppress(OSError):  # the end, when it comes
            for _ in range(600):
                peer.sendall(b"G")
                time.sleep(0.1)
                peer.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    if peer.recv(1) == b"":
                        break
                peer.settimeout(60)
            else:
                raise AssertionError("it may drip for ever")
        assert ask(port, "/")[0] == 200


def test_strangers_are_told_so_and_take_no_place_of_others() -> None:
    may = threading.Event()
    with serving(lambda _address: may.is_set()) as port, contextlib.ExitStack() as stack:
        status, body, _ = ask(port, "/")
        assert (status, "monitoring.allow_from" in body) == (403, True)
        for _ in range(STRANGERS):
            stack.enter_context(socket.create_connection((HOST, port), 60))
        with socket.create_connection((HOST, port), 60) as peer, contextlib.suppress(ConnectionResetError):
            assert peer.recv(1) == b"", "there are enough strangers"
        may.set()
        assert ask(port, "/")[0] == 200


def test_a_place_that_is_taken_is_a_typed_error() -> None:
    with (
        serving() as port,
        pytest.raises(MonitoringError, match=f"cannot listen on 127.0.0.1:{port}") as told,
    ):
        Server(HOST, port, page={}.get, admits=lambda _address: True)
    assert "the port is taken" in told.value.hint


# the pages ----------------------------------------------------------------------------------------
def configured(spool: Path, database: str, port: int, **more: str) -> Config:
    text = CONFIG.format(spool=spool, database=database, port=port)
    for old, new in more.items():
        text = text.replace(old, new)
    return parse(text, "config.yaml", {}).config


class Parts:
    """What a node tells of itself; a test breaks parts of it."""

    def __init__(self) -> None:
        self.broken: dict[str, str] = {}

    def __call__(self) -> list[Part]:
        vital = {"receive door": True, "receive spool": False, "gather database": False}
        vital |= {"gather destination pacs": False, "gather loop": True}
        return [
            Part(role=role, name=part, told=self.broken.get(f"{role} {part}", ""), vital=is_vital)
            for (role, _, part), is_vital in ((name.partition(" "), v) for name, v in vital.items())
        ]


SIGNS = {
    "receive": {"associations": 3, "counts": {"accepted": {"": 7}, "refused": {"A700": 2}}},
    "gather": {},
}


@contextmanager
def shown(spool: Path, database: str) -> Iterator[tuple[int, Parts]]:
    port, parts = free_port(), Parts()
    config = configured(spool, database, port)
    site = Site(lambda: config, spool, parts=parts, signs=lambda: SIGNS)
    with running(site.run):
        wait_until(lambda: _answers(port), 60, "the pages are there")
        yield port, parts


def _answers(port: int) -> bool:
    try:
        return ask(port, "/healthz")[0] > 0
    except OSError:
        return False


def values(port: int) -> dict[str, float]:
    """Samples by name and labels, as ``name{a=b}``."""
    status, text, headers = ask(port, "/metrics")
    assert (status, headers["Content-Type"].startswith("text/plain; version=0.0.4")) == (200, True)
    return {
        s.name + "".join(f"{{{k}={v}}}" for k, v in sorted(s.labels.items())): s.value
        for family in parsed(text)
        for s in family.samples
    }


def test_health_and_readiness_tell_which_part_and_what_to_do(tmp_path: Path, sqlite_url: str) -> None:
    Store.open(sqlite_url, tmp_path / "spool").close()
    with shown(tmp_path / "spool", sqlite_url) as (port, parts):
        assert ask(port, "/")[1].split() == ["/healthz", "/readyz", "/readyz/receive", "/metrics"]
        pages = ("/healthz", "/readyz", "/readyz/receive")
        assert [ask(port, page)[0] for page in pages] == [200, 200, 200]
        for broken, statuses in {
            "gather destination pacs": [200, 503, 200],
            "gather database": [200, 503, 503],
            "receive spool": [200, 503, 503],
            "receive door": [503, 503, 503],
            "gather loop": [503, 503, 200],
        }.items():
            parts.broken = {broken: "it is broken"}
            assert [ask(port, page)[0] for page in pages] == statuses, broken
            page = json.loads(ask(port, "/readyz")[1])
            role, _, part = broken.partition(" ")
            first = page["parts"][0]
            assert (page["ok"], first["role"], first["part"], first["told"]) == (
                False,
                role,
                part,
                "it is broken",
            )
            assert len(first["do"]) > 20
            assert all(one["ok"] for one in page["parts"][1:])
            seen = values(port)
            assert seen["luminode_ready"] == 0
            assert (seen["luminode_alive"], seen["luminode_takes_instances"]) == (
                statuses[0] == 200, statuses[2] == 200,
            )  # fmt: skip


def test_figures_are_those_of_the_store_and_of_the_receivers(store: Store, database_url: str) -> None:
    outbox(store, destinations=("pacs",))
    delivery = store.deliveries.claim("d", 30, NOW)
    assert delivery is not None
    store.deliveries.finish(delivery.id, "d", 1, NOW, outcomes=delivered(store, delivery, "d"))
    outbox(store, series=2, n=5)
    store.reception.record([received(store, k, series=3) for k in range(1, 3)])
    (store.spool.root / "gpu-unfit-host-1.json").write_text('{"since": "today", "why": "Xid 79"}')
    with shown(store.spool.root, database_url) as (port, _):
        seen = values(port)
    assert (seen["luminode_gpus_unfit"], seen["luminode_gpu_unfit{gpu=host-1}"]) == (1, 1)
    assert seen["luminode_instances_received_total"] == 3 + 5 + 2
    assert seen["luminode_series{state=OPEN}"] == 1
    assert seen["luminode_series_decided_total{action=enhance}{rule=chest}"] == 2
    assert seen["luminode_deliveries{destination=pacs}{state=PENDING}{what=derived}"] == 1
    assert seen["luminode_delivery_oldest_waiting_seconds{destination=pacs}{what=derived}"] > 1e6
    assert seen["luminode_deliveries_finished_total{destination=pacs}{outcome=sent}{what=derived}"] == 1
    assert seen["luminode_delivered_instances_total{destination=pacs}{status=0000H}{what=derived}"] == 3
    assert seen["luminode_last_slice_to_delivered_seconds_count{destination=pacs}"] == 1
    assert seen["luminode_associations_open{receiver=receive}"] == 3
    assert seen["luminode_associations_accepted_total{receiver=receive}"] == 7
    assert seen["luminode_instances_refused_total{receiver=receive}{status=A700}"] == 2
    assert seen["luminode_database_up"] == 1
    assert seen["luminode_disk_free_bytes"] > seen["luminode_disk_refuse_below_bytes"] == 1e8


def test_which_runtime_ran_and_why_no_better_one_is_counted(store: Store, database_url: str) -> None:
    """As the worker tells it in the provenance (node/enhance/work.py)."""
    ran = [("tensorrt_rtx", "NVIDIA H100", ()), ("tensorrt_rtx", "NVIDIA H100", ()), ("onnx", "cpu", REFUSED)]
    for n, (runtime, device, refused) in enumerate(ran, 1):
        job_id = queued(store, series=n)
        job = store.jobs.claim("w", 30, NOW)
        assert job is not None
        body = {
            "engine": {"name": "ct-cnn", "version": "1.2"}, "runtime": runtime, "device": device, "slices": 3,
            "skipped": 1, "refused": list(refused), "seconds": {"decode": 0.5, "total": 4.0},
        }  # fmt: skip
        store.jobs.finish(job_id, "w", 1, made(store, job), body, NOW)
    with shown(store.spool.root, database_url) as (port, _):
        seen = values(port)
    gpu = "{device=NVIDIA H100}{engine=ct-cnn}{runtime=tensorrt_rtx}{version=1.2}"
    cpu = "{device=cpu}{engine=ct-cnn}{runtime=onnx}{version=1.2}"
    assert (seen[f"luminode_enhanced_series_total{gpu}"], seen[f"luminode_enhanced_slices_total{gpu}"]) == (
        2,
        6,
    )
    assert (seen[f"luminode_enhanced_series_total{cpu}"], seen[f"luminode_enhanced_slices_total{cpu}"]) == (
        1,
        3,
    )
    assert seen["luminode_unchanged_slices_total{engine=ct-cnn}"] == 3
    fallbacks = {name: value for name, value in seen.items() if name.startswith("luminode_fallbacks_total")}
    assert fallbacks == {"luminode_fallbacks_total{engine=ct-cnn}{reason=memory}{runtime=tensorrt_rtx}": 1}
    assert seen["luminode_job_step_seconds_total{engine=ct-cnn}{step=decode}"] == 1.5
    assert seen["luminode_job_seconds_sum{engine=ct-cnn}{runtime=tensorrt_rtx}"] == 8
    assert seen["luminode_job_seconds_bucket{engine=ct-cnn}{le=2}{runtime=onnx}"] == 0
    assert seen["luminode_job_seconds_bucket{engine=ct-cnn}{le=5}{runtime=onnx}"] == 1


def test_counters_go_on_after_a_restart_and_never_fall(
    store: Store, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookout, "FRESH_S", 0.0)
    monkeypatch.setattr(lookout, "_FEW", -1)  # as of a database with a long past, of which nothing is counted
    sent = "luminode_series_decided_total{action=enhance}{rule=chest}"
    outbox(store)
    with shown(store.spool.root, database_url) as (port, _):
        assert values(port).get(sent, 0) == 0
        outbox(store, series=2)
        assert values(port)[sent] == 1
    outbox(store, series=3)  # while nobody watches
    with shown(store.spool.root, database_url) as (port, _):
        seen = values(port)
        assert (seen[sent], seen["luminode_instances_received_total"]) == (2, 6)
    (store.spool.root / "figures.json").write_text("{")
    with shown(store.spool.root, database_url) as (port, _):
        assert values(port).get(sent, 0) == 0, "what cannot be read begins anew"


@pytest.mark.parametrize("hangs", [False, True], ids=["nobody listens", "somebody who never answers"])
def test_a_database_that_is_away_is_told_and_the_rest_still_is(
    tmp_path: Path, hangs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookout, "PATIENCE_S", 0.5)
    with contextlib.ExitStack() as stack:
        port = free_port()
        if hangs:
            silent = stack.enter_context(socket.socket())
            silent.bind((HOST, port))
            silent.listen()
        database = f"postgresql+psycopg://luminode:secret@127.0.0.1:{port}/luminode"
        web, _ = stack.enter_context(shown(tmp_path, database))
        seen = values(web)
        assert seen["luminode_database_up"] == 0
        assert not [name for name in seen if name.startswith("luminode_instances_received")], "no old figure"
        assert seen["luminode_associations_accepted_total{receiver=receive}"] == 7
        assert ask(web, "/readyz")[0] == 200, "the parts tell of the database, and each look takes no time"
        assert "secret" not in ask(web, "/metrics")[1]


@pytest.mark.postgres
def test_a_database_that_goes_and_comes_back(
    postgres_binaries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookout, "FRESH_S", 0.0)
    one = Postgres(postgres_binaries)
    try:
        one.start()
        database = told(one.url)
        with Store.open(database, tmp_path / "spool") as store:
            outbox(store)
        with shown(tmp_path / "spool", database) as (port, _):
            assert values(port)["luminode_instances_received_total"] == 3
            one.kill()
            seen = values(port)
            assert (seen["luminode_database_up"], "luminode_jobs" in str(seen)) == (0, False)
            one.start()
            wait_until(lambda: values(port)["luminode_database_up"] == 1, 60, "it is there again")
            seen = values(port)
            assert seen["luminode_instances_received_total"] == 3
            assert seen["luminode_series_decided_total{action=enhance}{rule=chest}"] == 1
    finally:
        one.remove()


def test_figures_that_are_old_are_none(
    tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that answered once, and then no more."""
    monkeypatch.setattr(lookout, "FRESH_S", 0.0)
    Store.open(sqlite_url, tmp_path / "spool").close()
    hangs, over = threading.Event(), threading.Event()

    def sums() -> bool:
        if hangs.is_set():
            over.wait(60)
        return True

    with Lookout(lambda: Database(sqlite_url), tmp_path / "spool", sums=sums) as one:
        assert one.look().figures is not None
        monkeypatch.setattr(lookout, "PATIENCE_S", 0.05)
        hangs.set()
        assert one.look().figures is not None, "the last look is told on for a while"
        monkeypatch.setattr(lookout, "OLD_S", 0.0)
        found = one.look()
        assert (found.figures, "has not answered" in found.told) == (None, True)
        over.set()


def test_nothing_of_a_patient_and_no_uid_is_on_any_page(tmp_path: Path, sqlite_url: str) -> None:
    with Store.open(sqlite_url, tmp_path / "spool") as store:
        outbox(store)
        delivery = store.deliveries.claim("d", 30, NOW)
        assert delivery is not None
        store.deliveries.fail(delivery.id, "d", 1, "Doe^Jane 12345", NOW)
        store.reception.record([received(store, 1, series=8, calling_ae="DOE^JANE")])
        (series, *_) = store.series.list()
    with shown(tmp_path / "spool", sqlite_url) as (port, _):
        for page in ("/healthz", "/readyz", "/metrics"):
            text = ask(port, page)[1]
            for canary in ("Doe", "DOE", "12345", series.key.study_uid + ".", "2.25.", "1.2.840"):
                assert canary not in text.replace("127.0.0.1", ""), (page, canary)


def test_both_of_prometheus_formats_can_be_read(tmp_path: Path, sqlite_url: str) -> None:
    with Store.open(sqlite_url, tmp_path / "spool") as store:
        outbox(store)
    with shown(tmp_path / "spool", sqlite_url) as (port, _):
        accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
        _, text, headers = ask(port, "/metrics", Accept=accept)
        assert headers["Content-Type"].startswith("application/openmetrics-text")
        names = {family.name for family in openmetrics(text)}
        assert {"luminode_ready", "luminode_instances_received"} <= names
        assert ask(port, "/metrics", Accept="text/plain;version=hostile")[0] == 200


def test_an_edit_of_who_may_ask_takes_effect_at_once(tmp_path: Path, sqlite_url: str) -> None:
    Store.open(sqlite_url, tmp_path / "spool").close()
    port = free_port()
    configs = [configured(tmp_path / "spool", sqlite_url, port)]
    site = Site(lambda: configs[-1], tmp_path / "spool", parts=Parts(), signs=dict)
    with running(site.run):
        wait_until(lambda: _answers(port), 60, "the pages are there")
        only = {"monitoring: {listen": "monitoring: {allow_from: [127.0.0.9], listen"}
        configs.append(configured(tmp_path / "spool", sqlite_url, port, **only))
        assert ask(port, "/healthz")[0] == 403


def test_a_place_that_is_taken_is_told_and_tried_again(
    tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from node.web import site as site_room

    monkeypatch.setattr(site_room, "AGAIN_S", 0.05)
    Store.open(sqlite_url, tmp_path / "spool").close()
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        config = configured(tmp_path / "spool", sqlite_url, port)
        site = Site(lambda: config, tmp_path / "spool", parts=Parts(), signs=dict)
        with running(site.run):
            wait_until(lambda: "cannot listen" in site.told, 60, "it is told")
            other.close()
            wait_until(lambda: _answers(port), 60, "the place is taken when it is free")
            assert site.told == ""


def test_labels_have_an_end(tmp_path: Path) -> None:
    from node.store.figures import Place, Settled

    one = totals.Totals(place=Place(id=0, hash=""), settled=Settled(series=0))
    for n in range(5000):
        one.add(totals.SERIES, (f"rule {n}", "x" * 999))
        one.observe(totals.LAST_SLICE, (f"pacs {n}",), float(n))
    assert len(one.counters[totals.SERIES]) == totals.MOST + 1
    assert one.counters[totals.SERIES]["other", "other"] == 5000 - totals.MOST
    assert sum(sum(s.counts) for s in one.spreads[totals.LAST_SLICE].values()) == 5000
    assert max(len(label) for key in one.counters[totals.SERIES] for label in key) == totals.LONGEST
    totals.write(tmp_path, one)
    assert totals.read(tmp_path) == one
    assert (tmp_path / "figures.json").stat().st_mode & 0o777 == 0o600
