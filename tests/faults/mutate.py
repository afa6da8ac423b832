"""Break the product one line at a time, and see that the test of the broken promise turns red.

``python -m tests.faults.mutate [R1 ...]`` copies the checkout to a temporary folder and works there alone: an
installed package, editable or not, must not be what is tested, so every run begins with asking the copy's Python
where it imports the product from. A test that fails unbroken, or that is skipped, proves nothing and is told as such.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from queue import Queue

from tests.faults import mutations as folder
from tests.faults.ledger import OUT
from tests.faults.mutations import Mutation, Unexercised

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("node", "engines", "training")
WORKERS = int(os.environ.get("LUMINODE_FAULTS_WORKERS", "2"))
LONGEST_S = 600.0
"""A test that takes longer with the break than this hangs, and a hang is red."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What became of one mutation: ``red`` is what should be, and ``told`` says why it is or is not."""

    invariant: str
    what: str
    file: str
    test: str
    red: bool
    told: str
    seconds: float = 0.0
    date: str = ""


def all_mutations() -> list[Mutation]:
    """Every mutation of every module of ``tests/faults/mutations``."""
    found: list[Mutation] = []
    for module in sorted(pkgutil.iter_modules(folder.__path__), key=lambda m: m.name):
        found += importlib.import_module(f"{folder.__name__}.{module.name}").MUTATIONS
    return found


def all_unexercised() -> list[Unexercised]:
    """What every module of ``tests/faults/mutations`` says that nothing attacks."""
    found: list[Unexercised] = []
    for module in sorted(pkgutil.iter_modules(folder.__path__), key=lambda m: m.name):
        found += getattr(importlib.import_module(f"{folder.__name__}.{module.name}"), "UNEXERCISED", ())
    return found


def copy_checkout(to: Path) -> Path:
    """Copy what git knows or would add; returns the copy's root."""
    told = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    for name in told.stdout.decode().split("\0"):
        source = ROOT / name
        if name and source.is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, to / name)
    return to


class Copy:
    """A copy of the checkout in which tests run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {
            **{k: v for k, v in os.environ.items() if k not in ("LUMINODE_FAULTS", "PYTEST_CURRENT_TEST")},
            "PYTHONPATH": str(root),
            "LUMINODE_FAULTS_OUT": str(root / "var" / "faults"),
        }
        self._unbroken: dict[str, str] = {}
        self._second = int(time.time())
        self._must_be_what_is_imported()

    def _must_be_what_is_imported(self) -> None:
        names = ", ".join(PRODUCT)
        program = f"import tests.faults, {names}\nfor m in (tests, {names}): print(m.__path__[0])"
        told = subprocess.run(
            [sys.executable, "-c", program],
            cwd=self.root, env=self.environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        strangers = [p for p in told.stdout.split("\n") if p and not Path(p).is_relative_to(self.root)]
        if strangers:
            raise RuntimeError(f"the copy imports {strangers}: what is broken would not be what is tested")

    def run(self, test: str) -> tuple[str, str]:
        """Run one test; returns ``green``, ``red``, ``skipped`` or ``broken``, and the last line told."""
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
        try:
            told = subprocess.run(
                [*command, "--rootdir", str(self.root), test],
                cwd=self.root, env=self.environment, capture_output=True, text=True, check=False,
                timeout=LONGEST_S, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return "red", f"it hangs (over {LONGEST_S:.0f} s)"
        last = told.stdout.strip().rpartition("\n")[2] or told.stderr.strip().rpartition("\n")[2]
        if told.returncode == 0:
            return ("green" if re.search(r"\d+ passed", last) else "skipped"), last
        collected = told.returncode == 1 and re.search(r"\d+ (failed|error)", last)
        crashed = "Timeout" in told.stdout + told.stderr or told.returncode < 0
        return ("red" if collected or crashed else "broken"), last

    def unbroken(self, test: str) -> tuple[str, str]:
        """Run a test on the product as it is, once."""
        if test not in self._unbroken:
            self._unbroken[test] = "\n".join(self.run(test))
        state, _, told = self._unbroken[test].partition("\n")
        return state, told

    @contextmanager
    def broken(self, mutation: Mutation) -> Iterator[None]:
        """The product with one mutation in it."""
        path = self.root / mutation.file
        text = path.read_text(encoding="utf-8")
        if text.count(mutation.old) != 1:
            raise ValueError(f"{mutation.file} holds the text to break {text.count(mutation.old)} times")
        self._write(path, text.replace(mutation.old, mutation.new))
        try:
            yield
        finally:
            self._write(path, text)

    def _write(self, path: Path, text: str) -> None:
        """Python knows compiled files by second and size: no two versions may share both."""
        path.write_text(text, encoding="utf-8")
        self._second += 2
        os.utime(path, (self._second, self._second))


def prove(copy: Copy, mutation: Mutation) -> Proof:
    """Run the test of a mutation without and with it."""
    began = time.monotonic()
    red = False
    state, told = copy.unbroken(mutation.test)
    if state != "green":
        told = f"{state} without the break: {told}"
    else:
        try:
            with copy.broken(mutation):
                state, told = copy.run(mutation.test)
            red = state == "red"
        except (OSError, ValueError) as error:
            told = str(error)
    return Proof(
        invariant=mutation.invariant,
        what=mutation.what,
        file=mutation.file,
        test=mutation.test,
        red=red,
        told=told.strip("= "),
        seconds=round(time.monotonic() - began, 1),
        date=datetime.now(UTC).date().isoformat(),
    )


def main(arguments: Sequence[str]) -> int:
    """Prove the mutations of the named promises, or all; returns how many did not turn red (at most 99)."""
    wanted = [m for m in all_mutations() if not arguments or m.invariant in arguments]
    by_test: dict[str, list[Mutation]] = {}
    for mutation in wanted:
        by_test.setdefault(mutation.test, []).append(mutation)
    OUT.mkdir(parents=True, exist_ok=True)
    ledger = (OUT / "mutations.jsonl").absolute()
    silent, lock = list[Mutation](), threading.Lock()

    def prove_all(copy: Copy, mutations: Sequence[Mutation]) -> None:
        for mutation in mutations:
            proof = prove(copy, mutation)
            with lock:
                if not proof.red:
                    silent.append(mutation)
                with ledger.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(proof)) + "\n")
                sign = "red" if proof.red else "NOT RED"
                print(f"{proof.invariant} {sign}: {proof.what} ({proof.told})", flush=True)

    with tempfile.TemporaryDirectory(prefix="luminode-mutate-") as name:
        copies: Queue[Copy] = Queue()
        for number in range(WORKERS):
            copies.put(Copy(copy_checkout(Path(name).resolve() / str(number))))

        def lane(mutations: Sequence[Mutation]) -> None:
            copy = copies.get()
            try:
                prove_all(copy, mutations)
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(lane, by_test.values()))
    print(f"{len(wanted) - len(silent)} of {len(wanted)} turned their test red", flush=True)
    return min(len(silent), 99)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
