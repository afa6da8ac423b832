"""R26: no path leaves the spool, whatever peers call themselves and their instances."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

from node.store.spool import spool_path
from tests.faults.hostile import Echo, Node
from tests.faults.ledger import record
from tests.faults.scale import SEED, count
from tests.senders import CT, EXPLICIT, associate_rq, data_set, message, store_rq

UID = re.compile(r"[0-9.]{1,64}")

WORST = [
    "../../x", "..", ".", "/etc/x", "/tmp/x", "1.2/../../../x", "1.2.3/..", "..\\..\\x", "C:\\x", "\\\\host\\share",
    "1.2\0.3", "\0", "1.2.3\n", "1.2.3\r\nX", "con", "nul", "aux", "LPT1", "1.2.3:ads", "~", "~root", "$HOME", "`id`",
    "$(id)", "%2e%2e%2f", "file:///etc/x", "-rf", "*", "?", "1.2.3 ", " 1.2.3", "1" * 64, "1" * 65, "1." * 40, "",
    "\x1b[31m", "\u202e1.2.3".encode().decode("latin-1"), "é", "ÿ" * 16, "tmp", "derived", "..%c0%af", "1.2.3;x", "|x",
    "<script>", "=1+1", "tmp/x", "derived/00/x", "luminode.db", "../data/luminode.db", "./1", "//", "1.2.3.dcm",
]  # fmt: skip


def _tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _one(choice: random.Random) -> str:
    if choice.random() < 0.6:
        return choice.choice(WORST)
    letters = choice.choice(["0123456789./\\", "./", "0123456789.", "".join(map(chr, range(256)))])
    return "".join(choice.choice(letters) for _ in range(choice.randint(0, 66)))


def test_no_name_from_the_network_becomes_a_path(tmp_path: Path) -> None:
    """UIDs in command and data set, AE titles in the request: hostile ones, and some good ones between them."""
    n, each = count(400, 10_000), 20
    choice = random.Random(SEED)
    statuses: Counter[int] = Counter()
    good: set[str] = set()
    with Node(tmp_path, node={"require_called_ae": False}) as node, Echo(node) as echo:
        before = _tree(tmp_path)
        for number in range(n // each):
            titles = {"calling": _one(choice)[:16] or "A", "called": _one(choice)[:16] or "A"}
            with node.peer() as peer:
                kind, body = peer.ask(associate_rq([(1, CT, [EXPLICIT])], **titles))  # type: ignore[arg-type]
                if kind != 2:  # a title of blanks or with control characters is none
                    assert kind in (3, 7), body
                    peer.close()
                    peer = node.peer()
                    peer.associate(CT)
                with peer:
                    for k in range(each):
                        uids = [f"1.2.{number}.{k}", "1.2.3.4", "1.2.3"]
                        for which in choice.sample(range(4), choice.randint(0, 2)):
                            uids[which % 3] = _one(choice)
                        inner = uids[0] if choice.random() < 0.7 else _one(choice)
                        data = _data_set(inner, uids[1], uids[2])
                        peer.send(message(1, store_rq(uids[0]), data))
                        status = peer.answer().status
                        statuses[status] += 1
                        bare = uids[0].rstrip("\0 ")
                        if status == 0:
                            assert UID.fullmatch(bare), uids
                            assert all(UID.fullmatch(each.rstrip("\0 ")) for each in uids[1:]), uids
                            good.add(bare)
        node.quiet()
        stored, tmp = node.stored(), node.tmp()
        new = _tree(tmp_path) - before
        paths = {
            path
            for path in new
            if not re.fullmatch(
                r"spool/([0-9a-f]{2}(/[0-9a-f]{64}\.dcm)?|landing/[0-9a-f]{32}|health.*)", path
            )
        }
        record(
            "R26",
            load="hostile AE titles, SOP, series and study UIDs: traversal, NUL, 64+ characters, reserved names, bytes",
            count=n,
            result=f"{len(paths)} files outside, {len(stored)} stored under hashes, "
            + ", ".join(f"{k:04X}H x{v}" for k, v in sorted(statuses.items())),
            ok=not paths and set(stored) == good,
            lost=len(good - set(stored)),
            extra=len(set(stored) - good),
        )
        assert paths == set()
        assert set(stored) == good
        assert tmp == []
        assert set(statuses) <= {0, 0x0117, 0xA900, 0xC000}
        assert {0, 0x0117, 0xA900} <= set(statuses)
        assert echo.failed == []
        lines = node.log().splitlines()  # what a peer calls itself begins no line and moves no cursor (S6)
        assert [line for line in lines if not re.match(r"\d{4}-\d\d-\d\dT", line)] == []
        assert not set("\x1b\0\r\u202e") & set(node.log())


def _data_set(uid: str, series: str, study: str) -> bytes:
    """As ``data_set``, with UIDs of any bytes."""
    marks = {"1.2.77.1": uid, "1.2.77.2": series, "1.2.77.3": study}
    data = data_set("1.2.77.1", series="1.2.77.2", study="1.2.77.3")
    for mark, text in marks.items():
        value = text.encode("latin-1")
        value += b"\0" * (len(value) % 2)
        data = data.replace(b"UI\x08\0" + mark.encode(), b"UI" + len(value).to_bytes(2, "little") + value)
    return data


def test_a_link_planted_in_the_spool_is_not_followed(tmp_path: Path) -> None:
    """R26: whoever can write into the spool still cannot lead the node out of it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    with Node(tmp_path) as node:
        statuses: dict[str, int] = {}
        with node.peer() as peer:
            peer.associate(CT)
            for number in range(10):
                uid, series = f"1.2.3.{number}", f"1.2.4.{number}"
                data = data_set(uid, series=series)
                relative = spool_path(series, uid, "0" * 64)
                folder = node.spool / Path(relative).parent
                if number % 2 and not folder.exists():
                    folder.symlink_to(outside)
                peer.send(message(1, store_rq(uid), data))
                statuses[uid] = peer.answer().status
        node.quiet()
        led_out = list(outside.iterdir())
        refused = [uid for uid, status in statuses.items() if status == 0xA700]
        record(
            "R26",
            load="symbolic links in place of folders of the spool, planted while the node runs",
            count=len(statuses),
            result=f"{len(led_out)} files led out, {len(refused)} instances refused with A700H",
            ok=not led_out,
        )
        assert led_out == []
        assert len(refused) >= 4
        assert set(statuses.values()) == {0, 0xA700}
        assert set(node.stored()) == {uid for uid, status in statuses.items() if status == 0}
        assert node.tmp() == []
