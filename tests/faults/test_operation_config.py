"""R49: a storm of broken edits of config.yaml under load; every series is decided by one version, none is lost."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest

from node.app.roles import in_force
from node.app.settings import Settings
from node.config.load import LoadedConfig, parse
from node.config.schema import Config
from tests.faults import ledger
from tests.faults.scale import SEED, count
from tests.faults.site import Shift, settle, site
from tests.peers import wait_until

pytestmark = pytest.mark.timeout(600)

PER_S = 20.0
BURST = 20
"""After so many edits the file stands still twice, as it must to be judged: broken, then good."""
STILL_S = 2.5

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(8)
)


class Editor:
    """Does to a file what editors, tools, disks and people do."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.chance = random.Random(seed)
        self.base = path.read_text()
        self.n_good = 0
        self.tally: Counter[str] = Counter()

    def good(self) -> str:
        """The next good version: its rule has a name of its own."""
        self.n_good += 1
        return self.base.replace("name: ct,", f"name: ct-{self.n_good},")

    def edit(self) -> None:
        """One of them, by chance."""
        kinds: tuple[Callable[[], None], ...] = (
            self.torn, self.invalid, self.bomb, self.unknown_key, self.wrong_value, self.away_and_back,
            self.link_swapped, self.unreadable, self.no_utf8, self.empty, self.huge, self.in_place,
        )  # fmt: skip
        kind = self.chance.choice(kinds)
        self.tally[kind.__name__] += 1
        kind()

    def put(self, text: str | bytes) -> None:
        """Atomically, as good editors do; whatever was there before makes room."""
        new = self.path.with_name(".new.yaml")
        new.write_bytes(text.encode() if isinstance(text, str) else text)
        if self.path.is_dir() and not self.path.is_symlink():
            self.path.rmdir()
        new.replace(self.path)

    def whole(self) -> None:
        self.put(self.good())

    def torn(self) -> None:
        text = self.good()
        self.put(text[: self.chance.randrange(1, len(text))])

    def in_place(self) -> None:
        """Truncated and written in two pieces: a reader may see either."""
        self.put(self.base)
        text = self.good()
        half = self.chance.randrange(len(text))
        with self.path.open("w") as file:
            file.write(text[:half])
            file.flush()
            time.sleep(0.002)
            file.write(text[half:])

    def invalid(self) -> None:
        self.put(self.good().replace("rules: [", "rules: [}", 1))

    def bomb(self) -> None:
        self.put(BOMB)

    def unknown_key(self) -> None:
        self.put(self.good().replace("settle:", "setle:"))

    def wrong_value(self) -> None:
        self.put(self.good().replace("settle: 300ms", "settle: soon"))

    def away_and_back(self) -> None:
        with suppress(OSError):
            self.path.unlink()
        time.sleep(0.005)
        self.put(self.good())

    def link_swapped(self) -> None:
        other = self.path.with_name(f"other-{self.n_good}.yaml")
        other.write_text(self.good() if self.chance.random() < 0.5 else "nonsense: [")
        link = self.path.with_name(".link.yaml")
        link.symlink_to(other)
        if self.path.is_dir() and not self.path.is_symlink():
            self.path.rmdir()
        link.replace(self.path)

    def unreadable(self) -> None:
        """chmod 000 where that means something; for root a link that leads to itself, or a folder."""
        if os.geteuid() != 0:
            self.put(self.good())
            self.path.chmod(0)
            return
        self.put("")
        self.path.unlink()
        if self.chance.random() < 0.5:
            self.path.symlink_to(self.path.name)
        else:
            self.path.mkdir()

    def no_utf8(self) -> None:
        self.put(b"\xff\xfe" + self.good().encode())

    def empty(self) -> None:
        self.put("")

    def huge(self) -> None:
        self.put("x: y\n" * 1_000_000)


def test_no_edit_stops_or_half_applies(tmp_path: Path) -> None:
    n = count(20, 1000)
    node = site(tmp_path)
    node.start()
    editor = Editor(node.config, SEED)
    broken = (editor.unknown_key, editor.wrong_value, editor.invalid)
    try:
        with Shift(node, per_s=10.0) as shift:
            began = time.monotonic()
            for k in range(n):
                editor.edit()
                time.sleep(max(0.0, began + k / PER_S - time.monotonic()))
                if k % BURST == BURST - 1:
                    for stands_still in (editor.chance.choice(broken), editor.whole):
                        stands_still()
                        time.sleep(STILL_S)
                        began += STILL_S
            last = editor.good()
            editor.put(last)
            with node.store() as store:
                wait_until(
                    lambda: (now := store.configs.current()) is not None and now.text == last,
                    240, "the last good edit is in force",
                )  # fmt: skip
        found = settle(node, shift.log)
        with node.store() as store:
            versions = {v.digest: v.text for v in store.configs.history(limit=100_000)}
            refused = store.events.list(name="config.refused", limit=10_000)
            mixed = []
            decided = 0
            for series in store.series.list(limit=10_000):
                decision = store.series.decision(series.id)
                if decision is None:
                    continue
                decided += 1
                (job,) = store.jobs.list(series_id=series.id)
                text = versions.get(job.config_digest, "")
                if f"name: {decision.rule}," not in text or job.rule != decision.rule:
                    mixed.append(series.id)
        placed = sum(":0:0:" not in fault for e in refused for fault in e.body["faults"])
        answers = dict(shift.log.refused)
    finally:
        stopped = node.stop()
    ok = found.even and not mixed and not answers and bool(placed) and stopped == 0
    ledger.record(
        "R49",
        load=f"{n} edits at {PER_S:.0f}/s of {len(editor.tally)} kinds ({', '.join(sorted(editor.tally))}), "
        f"3 scanners at 10 slices/s, a broken and a good version that stay after every {BURST}",
        count=n,
        result=f"{decided} series by {len(versions)} versions, each by one; {len(refused)} refusals on record, "
        f"{placed} of their faults with a line; {shift.n_acknowledged} slices acknowledged",
        ok=ok,
        lost=len(found.lost),
        extra=len(found.extra),
    )
    assert ok, (found, mixed, answers, placed, stopped)
    assert len(versions) >= n // BURST


def test_what_decides_and_its_digest_are_of_one_version(tmp_path: Path) -> None:
    """However often an edit takes effect between two looks."""
    editor = Editor(site(tmp_path).config, SEED)

    class Edited:
        """Settings in which every look finds the next version."""

        @property
        def loaded(self) -> LoadedConfig:
            return parse(editor.good())

        @property
        def config(self) -> Config:
            return self.loaded.config

    found = in_force(cast(Settings, Edited()))
    name = found.config.rules[0].name
    assert found.digest == parse(editor.base.replace("name: ct,", f"name: {name},")).digest


@pytest.mark.parametrize("kind", ["torn", "bomb", "unknown_key", "no_utf8", "empty", "huge"])
def test_what_the_storm_writes_is_refused_with_its_place(kind: str, tmp_path: Path) -> None:
    """The storm must hold broken versions: each kind is one by itself."""
    from node.config.load import load
    from node.errors import ConfigError

    editor = Editor(site(tmp_path).config, SEED)
    assert parse(editor.good()).config.rules[0].name == "ct-1"
    getattr(editor, kind)()
    with pytest.raises(ConfigError) as raised:
        load(editor.path, {})
    assert raised.value.faults
