"""The watch over config.yaml: a good edit applies, a bad one never, a torn one is not looked at."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from node.config.live import LiveConfig, diff, restart_needed
from node.config.load import LoadedConfig, parse
from node.errors import ConfigError
from tests.faults.tls_samples import Authority

GOOD = "node: {accept_from: [CT1]}\nrules: [{name: a, when: any, ignore: true}]\n"
OTHER = GOOD.replace("CT1", "MR1")
BAD = GOOD.replace("accept_from", "acept_from")


class Watch:
    """A LiveConfig with what it told."""

    def __init__(self, path: Path) -> None:
        self.applied: list[str] = []
        self.diffs: list[str] = []
        self.refused: list[str] = []
        self.fail = 0
        self.fail_to_tell = 0
        self.changed = threading.Event()
        self.live = LiveConfig(path, {}, on_applied=self.on_applied, on_refused=self.on_refused)

    def on_applied(self, new: LoadedConfig, change: str) -> None:
        if self.fail:
            self.fail -= 1
            raise OSError("the database is away")
        self.applied.append(new.digest)
        self.diffs.append(change)
        self.changed.set()

    def on_refused(self, error: ConfigError) -> None:
        if self.fail_to_tell:
            self.fail_to_tell -= 1
            raise OSError("the database is away")
        self.refused.append(str(error))
        self.changed.set()

    @property
    def accept_from(self) -> str:
        peers = self.live.current.config.node.accept_from
        assert peers != "any"
        return peers[0].ae_title


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(GOOD)
    return path


@pytest.fixture
def watch(path: Path) -> Watch:
    return Watch(path)


def test_a_bad_file_at_the_start_is_an_error(path: Path) -> None:
    path.write_text(BAD)
    with pytest.raises(ConfigError):
        Watch(path)


def test_nothing_changed_nothing_told(watch: Watch, path: Path) -> None:
    assert not any(watch.live.poll() for _ in range(5))
    os.utime(path)
    assert not any(watch.live.poll() for _ in range(5))
    assert (watch.applied, watch.refused) == ([], [])


def test_a_good_edit_applies_when_it_has_stood_still(watch: Watch, path: Path) -> None:
    path.write_text(OTHER)
    assert not watch.live.poll()
    assert watch.accept_from == "CT1"
    assert watch.live.poll()
    assert watch.accept_from == "MR1"
    assert watch.applied == [watch.live.current.digest]
    assert "-node: {accept_from: [CT1]}" in watch.diffs[0]
    assert "+node: {accept_from: [MR1]}" in watch.diffs[0]
    assert not watch.live.poll()


def test_a_file_that_is_being_written_is_left_alone(watch: Watch, path: Path) -> None:
    with path.open("w") as stream:
        for piece in (OTHER[:9], OTHER[9:30], OTHER[30:]):
            stream.write(piece)
            stream.flush()
            assert not watch.live.poll()
    assert watch.refused == []
    assert watch.live.poll()
    assert watch.accept_from == "MR1"


def test_a_bad_edit_is_refused_once_and_the_last_good_one_stays(watch: Watch, path: Path) -> None:
    path.write_text(BAD)
    assert not any(watch.live.poll() for _ in range(5))
    assert len(watch.refused) == 1
    assert f"{path}:1:8" in watch.refused[0]
    assert watch.accept_from == "CT1"
    path.write_text(OTHER)
    assert [watch.live.poll() for _ in range(2)] == [False, True]


def test_the_same_bad_edit_after_a_good_one_is_told_again(watch: Watch, path: Path) -> None:
    for text in (BAD, GOOD, BAD):
        path.write_text(text)
        for _ in range(3):
            watch.live.poll()
    assert len(watch.refused) == 2
    assert watch.applied == []


def _delete(path: Path) -> None:
    path.unlink()


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _binary(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")


def _empty(path: Path) -> None:
    path.write_text("")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def _huge(path: Path) -> None:
    path.write_text("#" * 2_000_000)


@pytest.mark.parametrize("harm", [_delete, _folder, _binary, _empty, _pipe, _dangling, _huge])
def test_a_file_that_is_gone_or_no_text_changes_nothing(
    watch: Watch, path: Path, harm: Callable[[Path], None]
) -> None:
    harm(path)
    assert not any(watch.live.poll() for _ in range(4))
    assert len(watch.refused) == 1
    assert watch.accept_from == "CT1"
    path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    path.write_text(OTHER)
    assert any(watch.live.poll() for _ in range(2))


def test_a_file_that_is_replaced_as_editors_do(watch: Watch, path: Path) -> None:
    new = path.with_name(".config.yaml.swp")
    new.write_text(OTHER)
    new.replace(path)
    assert [watch.live.poll() for _ in range(2)] == [False, True]


def test_a_symlink_that_is_swung_round(tmp_path: Path) -> None:
    for name, text in (("one", GOOD), ("two", OTHER)):
        (tmp_path / name).write_text(text)
    link = tmp_path / "config.yaml"
    link.symlink_to("one")
    watch = Watch(link)
    link.unlink()
    link.symlink_to("two")
    assert [watch.live.poll() for _ in range(2)] == [False, True]
    assert watch.accept_from == "MR1"


def test_an_edit_that_keeps_size_and_time_is_noticed(watch: Watch, path: Path) -> None:
    before = path.stat()
    path.write_text(OTHER)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert [watch.live.poll() for _ in range(2)] == [False, True]


def test_reload_reads_at_once(watch: Watch, path: Path) -> None:
    assert not watch.live.reload()
    path.write_text(OTHER)
    assert watch.live.reload()
    path.write_text(BAD)
    assert not watch.live.reload()
    assert not watch.live.reload()
    assert len(watch.refused) == 2  # whoever asks is answered
    assert watch.accept_from == "MR1"


def test_reload_judges_a_refused_file_again(tmp_path: Path, path: Path, watch: Watch) -> None:
    tls = f"tls: {{certificate: {tmp_path}/c.pem, key: {tmp_path}/c.pem}}"
    path.write_text(OTHER.replace("[MR1]", f"[MR1], {tls}"))
    assert not watch.live.reload()
    pair = Authority(tmp_path, "ca").issue("node")
    (tmp_path / "c.pem").write_bytes(pair.certificate.read_bytes() + pair.key.read_bytes())
    assert not any(watch.live.poll() for _ in range(3))
    assert watch.live.reload()


def test_what_cannot_be_put_in_force_is_tried_again(watch: Watch, path: Path) -> None:
    watch.fail = 2
    path.write_text(OTHER)
    watch.live.poll()
    assert not watch.live.poll()
    assert watch.accept_from == "CT1"
    assert "could not be put in force: OSError" in watch.refused[0]
    assert any(watch.live.poll() for _ in range(4))
    assert watch.accept_from == "MR1"
    assert len(watch.refused) == 1


def swap(path: Path, text: str) -> None:
    """Replace the file at once, so that a thread never sees half of it."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def test_the_thread_applies_by_itself_and_stops(watch: Watch, path: Path) -> None:
    watch.live.start(interval_s=0.01)
    try:
        swap(path, OTHER)
        assert watch.changed.wait(10)
    finally:
        watch.live.stop()
    watch.live.stop()
    assert watch.accept_from == "MR1"
    swap(path, GOOD)
    assert watch.accept_from == "MR1"


def test_the_thread_outlives_whoever_it_tells(watch: Watch, path: Path) -> None:
    watch.fail_to_tell = 3
    swap(path, BAD)
    watch.live.start(interval_s=0.01)
    try:
        assert watch.changed.wait(10)
        watch.changed.clear()
        swap(path, OTHER)
        assert watch.changed.wait(10)
    finally:
        watch.live.stop()
    assert len(watch.refused) == 1
    assert watch.accept_from == "MR1"


def test_many_edits_in_a_row_leave_the_last_good_one(watch: Watch, path: Path) -> None:
    texts = (BAD, OTHER, OTHER[:20], "[" * 100, GOOD, "", "a: &a [*a]\n", OTHER)
    for n in range(80):
        path.write_text(texts[n % len(texts)])
        watch.live.poll()
        if n % 3 == 0:
            watch.live.poll()
        assert watch.accept_from in ("CT1", "MR1")
    path.write_text(GOOD.replace("CT1", "LAST"))
    assert [watch.live.poll() for _ in range(2)] == [False, True]
    assert watch.accept_from == "LAST"


def test_what_waits_for_a_restart_is_told() -> None:
    old = parse(GOOD)
    assert restart_needed(old, parse(OTHER)) == ()
    text = GOOD.replace("[CT1]", "[CT1], listen: 127.0.0.1:104") + "store: {spool: elsewhere}\n"
    assert restart_needed(old, parse(text)) == ("node.listen", "store.spool")


def test_a_diff_masks_passwords() -> None:
    old, new = (
        parse(f"{GOOD}store: {{database: 'postgresql+psycopg://u:{p}@{p}.lan/x'}}\n") for p in ("pw1", "pw2")
    )
    assert "u:***@pw2.lan" in diff(old, new)
    assert "u:pw" not in diff(old, new)
    assert diff(None, new).count("\n+") == 1 + 3


def fallen_back(path: Path, fallback: str | None) -> LiveConfig:
    def quiet(*_: object) -> None:
        return None

    return LiveConfig(path, {}, on_applied=quiet, on_refused=quiet, fallback=fallback)


@pytest.mark.parametrize("harm", [_delete, _folder, _binary, _empty, lambda path: path.write_text(BAD)])
def test_a_bad_file_at_the_start_with_a_last_good_text(path: Path, harm: Callable[[Path], object]) -> None:
    harm(path)
    live = fallen_back(path, OTHER)
    assert live.current.digest == parse(OTHER).digest
    assert live.refusal is not None
    assert str(path) in str(live.refusal)
    assert not any(live.poll() for _ in range(3))
    path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    path.write_text(OTHER.replace("MR1", "MR2"))
    assert any(live.poll() for _ in range(2))


def test_a_bad_file_mended_to_what_is_in_force_is_no_edit(path: Path) -> None:
    path.write_text(BAD)
    live = fallen_back(path, GOOD)
    path.write_text(GOOD)
    assert not any(live.poll() for _ in range(3))


def test_a_last_good_text_that_is_bad_by_now_is_none(path: Path) -> None:
    path.write_text(BAD)
    with pytest.raises(ConfigError, match="acept_from"):
        fallen_back(path, OTHER.replace("MR1", "${GONE}"))


def test_a_good_file_goes_before_the_last_good_text(path: Path) -> None:
    live = fallen_back(path, OTHER)
    assert live.current.digest == parse(GOOD).digest
    assert live.refusal is None


def test_what_waits_for_the_next_start_of_the_node_waits_for_it(path: Path) -> None:
    path.write_text(OTHER + "store: {spool: elsewhere}\n")
    live = fallen_back(path, GOOD)
    assert live.current.digest == parse(GOOD).digest
    assert live.refusal is None
    assert [live.poll() for _ in range(2)] == [False, True]
