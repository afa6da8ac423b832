"""How single values are written."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.config import tree, values
from node.config.network import HostPort, Peer
from node.config.schema import NodeSettings
from node.config.values import Refused


@pytest.mark.parametrize(
    "part",
    ["u@/d?host=/var/run/postgresql", "/d?host=/a", "u:a%40b@h:5432/d", "u:a/b?c#d@h/d", "u%40srv:p@h/d",
     "u:p@[::1]/d?sslmode=verify-full&sslrootcert=/a%20b.pem", "u:p@h/d?host=a:1&host=b:2"],
)  # fmt: skip
def test_what_is_a_database_on_a_server(part: str) -> None:
    assert values.database(f"postgresql+psycopg://{part}") == f"postgresql+psycopg://{part}"


@pytest.mark.parametrize("part", ["u@srv:p@h/d", "u:a b@h/d", "u:p@h/d?sslrootcert=/a b.pem"])
def test_what_a_url_has_to_have_quoted_is_said(part: str) -> None:
    with pytest.raises(Refused) as refused:
        values.database(f"postgresql+psycopg://{part}")
    assert "@ as %40" in refused.value.hint
    assert "space as %20" in refused.value.hint


@pytest.mark.parametrize("piece", [",a:", "://:", ",a", "[a:@"])
def test_a_long_value_is_told_at_once(piece: str) -> None:
    """However a file of the largest size is made, nobody waits for its passwords to be looked for."""
    began = time.process_time()
    values.quote(piece * (tree.MAX_CHARACTERS // len(piece)))
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("30s", 30),
        ("5m", 300),
        ("2h", 7200),
        ("7d", 604800),
        ("500ms", 0.5),
        ("1.5h", 5400),
        ("0", 0),
        (" 3 s", 3),
    ],
)
def test_a_duration_is_seconds(written: str, seconds: float) -> None:
    assert values.duration(written) == seconds


@pytest.mark.parametrize(
    "written", ["", "s", "30", "1e3s", "-5s", "5 min", "forever", "0x1Fs", "٣s", "nan", "inf"]
)
def test_what_is_no_duration(written: str) -> None:
    with pytest.raises(Refused):
        values.duration(written)


def test_a_duration_without_a_unit_asks_for_one() -> None:
    with pytest.raises(Refused) as refused:
        values.duration("30")
    assert "30s" in refused.value.hint


def test_durations_from_code() -> None:
    assert values.duration(2.5) == 2.5
    assert values.kept_for("forever") is None
    assert values.kept_for("7d") == 604800
    for bad in (-1, math.nan, math.inf, True, None):
        with pytest.raises(Refused):
            values.duration(bad)


@pytest.mark.parametrize(
    ("written", "n_bytes"),
    [("20GB", 20 * 10**9), ("512MiB", 512 * 2**20), ("128KiB", 131072), ("64 kB", 64000), ("131072", 131072)],
)
def test_a_size_is_bytes(written: str, n_bytes: int) -> None:
    assert values.size(written) == n_bytes


@pytest.mark.parametrize("written", ["", "20 gigs", "-1", "1e9", "20G", "0x10", "GB"])
def test_what_is_no_size(written: str) -> None:
    with pytest.raises(Refused):
        values.size(written)


@pytest.mark.parametrize(
    "title", ["LUMINODE", "NO", "012", "1e3", "0x1F", "2024-01-01", "a b", "null", "~", "A" * 16]
)
def test_ae_titles_stay_as_written(title: str) -> None:
    assert values.ae_title(title) == title


def test_padding_is_no_part_of_an_ae_title() -> None:
    assert values.ae_title("  CT1   ") == "CT1"


@pytest.mark.parametrize("title", ["", "   ", "A" * 17, "A\\B", "A\nB", "Ä", None, 5])
def test_what_is_no_ae_title(title: object) -> None:
    with pytest.raises(Refused):
        values.ae_title(title)


@pytest.mark.parametrize(
    ("written", "host", "port"),
    [
        ("0.0.0.0:11112", "0.0.0.0", 11112),
        ("pacs.hospital.lan:104", "pacs.hospital.lan", 104),
        ("localhost:0", "localhost", 0),
        ("[::1]:104", "::1", 104),
    ],
)
def test_an_address(written: str, host: str, port: int) -> None:
    assert values.host_and_port(written) == (host, port)
    assert str(HostPort(host=host, port=port)) == written


@pytest.mark.parametrize(
    "written",
    [
        "",
        "11112",
        "host",
        "host:",
        ":104",
        "host:0x10",
        "host:70000",
        "::1:104",
        "1.2.3:104",
        "a b:1",
        "h:1 2",
    ],
)
def test_what_is_no_address(written: str) -> None:
    with pytest.raises(Refused):
        values.host_and_port(written)


def test_an_address_with_host_bits_in_its_network_says_both_ways_out() -> None:
    with pytest.raises(Refused) as refused:
        values.network("10.1.2.3/24")
    assert "10.1.2.0/24" in refused.value.hint
    assert "10.1.2.3" in refused.value.hint


@pytest.mark.parametrize("written", ["true", "True", "TRUE"])
def test_truth(written: str) -> None:
    assert values.truth(written) is True


@pytest.mark.parametrize("written", ["yes", "on", "1", "", "no", "t", None])
def test_what_is_neither_true_nor_false(written: object) -> None:
    with pytest.raises(Refused):
        values.truth(written)


@pytest.mark.parametrize("written", ["1e3", "0x1F", "0o17", "1_000", "1.0", "", "٣", "1" * 5000])
def test_what_is_no_whole_number(written: str) -> None:
    with pytest.raises(Refused):
        values.whole(written)


def test_a_leading_zero_is_decimal_not_octal() -> None:
    assert values.whole("012") == 12


@pytest.mark.parametrize("written", ["1.2.840.10008.1.2", "2.25.0", "1.0"])
def test_uids(written: str) -> None:
    assert values.uid(written) == written


@pytest.mark.parametrize("written", ["", "1", "1..2", "1.02", "a.b", "1." + "2" * 63, ".1", "1.2."])
def test_what_is_no_uid(written: str) -> None:
    with pytest.raises(Refused):
        values.uid(written)


def test_options_read_as_numbers_where_they_are_numbers() -> None:
    written = {"radius": "3", "weight": "0.5", "exact": "true", "name": "NO", "deep": {"list": ["1", "x"]}}
    assert values.natural(written) == {
        "radius": 3,
        "weight": 0.5,
        "exact": True,
        "name": "NO",
        "deep": {"list": [1, "x"]},
    }


def test_a_fault_never_repeats_a_database_url() -> None:
    with pytest.raises(Refused) as refused:
        values.database("postgresql://u:hunter2@db/x")
    assert "hunter2" not in f"{refused.value} {refused.value.hint}"


@given(st.one_of(st.text(), st.integers(), st.floats(), st.none(), st.booleans(), st.lists(st.text())))
def test_every_reader_takes_a_value_or_refuses_it(value: object) -> None:
    readers = (
        values.duration,
        values.kept_for,
        values.size,
        values.whole,
        values.number,
        values.truth,
        values.text,
        values.filled,
        values.ae_title,
        values.host_and_port,
        values.network,
        values.uid,
        values.name,
        values.database,
    )
    for reader in readers:
        try:
            reader(value)
            told = True
        except Refused as refused:
            told = bool(refused.message and refused.hint)
        assert told


@pytest.mark.parametrize(
    ("address", "admitted"),
    [
        ("10.1.2.3", True),
        ("10.1.2.4", False),
        ("::ffff:10.1.2.3", True),
        ("192.168.7.9", True),
        ("nonsense", False),
    ],
)
def test_a_pinned_peer_comes_from_its_addresses_only(address: str, admitted: bool) -> None:
    peer = Peer.model_validate({"ae_title": "CT1", "addresses": ["10.1.2.3", "192.168.0.0/16"]})
    assert peer.admits(address) is admitted


def test_who_may_associate() -> None:
    node = NodeSettings.model_validate(
        {"accept_from": ["NO", {"ae_title": "CT1", "addresses": ["10.0.0.1"]}]}
    )
    assert node.peer("NO              ", "203.0.113.7")
    assert node.peer("CT1", "10.0.0.1")
    assert not node.peer("CT1", "10.0.0.2")
    assert not node.peer("no", "10.0.0.1")
    assert not node.peer("", "10.0.0.1")
    assert NodeSettings.model_validate({"accept_from": "any"}).peer("WHOEVER", "203.0.113.7")


def test_one_ae_title_may_be_pinned_twice() -> None:
    node = NodeSettings.model_validate(
        {"accept_from": [{"ae_title": "CT1", "addresses": [a]} for a in ("10.0.0.1", "10.0.0.2")]}
    )
    assert node.peer("CT1", "10.0.0.2")
