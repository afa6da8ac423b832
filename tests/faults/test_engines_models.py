"""R47: an altered model is refused before any parser sees it, the others keep serving, and it is an event."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ruamel.yaml import YAML

import engines.card
import engines.catalog
import engines.runtime.onnx as runtime
from engines.canary import prove
from engines.card import SEAL, seals
from engines.catalog import ZOO, Catalog
from engines.errors import CardInvalid, EngineError, WeightsMismatch
from engines.ladder import Place
from engines.runtime import onnxfile
from node.enhance import worker
from node.enhance.guardian import SIZE
from node.enhance.workshop import Workshop
from node.store import Store
from tests import onnx_samples
from tests.faults.ledger import record
from tests.faults.scale import SEED, count

NAME = "ct-cnn"


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """A sealed copy of two shipped engines."""
    where = tmp_path / "zoo"
    where.mkdir()
    for name in (NAME, "mr-cnn"):
        shutil.copytree(ZOO / name, where / name)
    shutil.copy(ZOO / SEAL, where / SEAL)
    return where


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a parser was given: digests of ONNX files, by our own look into them, and ``yaml`` for cards."""
    seen: list[str] = []
    inspect, yaml = onnxfile.inspect, YAML

    def looked(content: bytes) -> Any:
        seen.append(hashlib.sha256(content).hexdigest())
        return inspect(content)

    def loader(*args: Any, **more: Any) -> Any:
        seen.append("yaml")
        return yaml(*args, **more)

    monkeypatch.setattr(runtime, "inspect", looked)
    monkeypatch.setattr(engines.card, "YAML", loader)
    return seen


def refused(zoo: Path, name: str = NAME) -> EngineError | None:
    """Why an engine of a folder cannot be loaded; the other one must."""
    catalog = Catalog([zoo])
    other = next(n for n in (NAME, "mr-cnn") if n != name)
    assert prove(catalog.load(other, threads=1)).against == "kept"
    try:
        catalog.load(name, threads=1)
    except EngineError as e:
        return e
    return None


@pytest.mark.parametrize("file", ["model.fp32.onnx", "card.yaml"])
def test_one_byte_is_enough(zoo: Path, parsed: list[str], file: str) -> None:
    path = zoo / NAME / file
    sound = path.read_bytes()
    rng = np.random.default_rng(SEED)
    n, wrong = count(12, 300), []
    for _ in range(n):
        at, bit = int(rng.integers(len(sound))), 1 << int(rng.integers(8))
        spoiled = bytearray(sound)
        spoiled[at] ^= bit
        path.write_bytes(spoiled)
        catalog = Catalog([zoo])
        parsed.clear()
        if file == "card.yaml":
            Catalog([zoo])
            fault: EngineError | None = catalog.faults().get(NAME)
            looked = parsed.count("yaml") != 1  # the card of the other engine alone
        else:
            try:
                catalog.load(NAME, threads=1)
                fault = None
            except EngineError as e:
                fault = e
            looked = bool(parsed)
        kind = CardInvalid if file == "card.yaml" else WeightsMismatch
        if not isinstance(fault, kind) or looked:
            wrong.append((at, bit, fault, looked))
    path.write_bytes(sound)
    record("R47", load=f"1 bit flipped at a random place of {file}", count=n, ok=not wrong,
           result=f"{n - len(wrong)} refused before a parser saw them", lost=len(wrong))  # fmt: skip
    assert not wrong
    assert refused(zoo) is None, "whole again, it serves again"


def loads_altered(zoo: Path, file: str) -> tuple[bool, EngineError | None]:
    """Whether an engine of an altered folder is there as if it were whole, and what was raised or kept instead."""
    catalog = Catalog([zoo])
    fault: EngineError | None = next(iter(catalog.faults().values()), None)
    if not file.startswith("model."):
        return fault is None, fault
    path, sha256 = catalog.models(NAME)[file.split(".")[1]]
    try:
        if file == "model.fp32.onnx":
            catalog.load(NAME, threads=1)
        else:  # the half is read by the runtimes of a GPU, by this very function
            runtime.read_verified(path, sha256)
    except EngineError as e:
        return False, e
    return True, None


@pytest.mark.parametrize("file", ["card.yaml", SEAL, "model.fp32.onnx", "model.fp16.onnx"])
def test_every_byte_flipped_is_refused(zoo: Path, file: str) -> None:
    """Of cards and of their seal each byte, of the networks every so many; all its bits, or some of them."""
    told = {name: digest for name, digest in (seals(zoo) or {}).items() if (zoo / name).is_dir()}
    (zoo / SEAL).write_text(json.dumps(told, indent=1))
    path = zoo / SEAL if file == SEAL else zoo / NAME / file
    sound, rng = path.read_bytes(), np.random.default_rng(SEED)
    assert not loads_altered(zoo, file)[1], "whole, it is loaded"
    places = np.arange(0, len(sound), 1 if len(sound) < 10_000 else 997)
    places = rng.permutation(places)[: count(10, len(places))]
    wrong = []
    with path.open("r+b") as spoiled:
        for n, at in enumerate(map(int, places)):
            flip = 0xFF if n % 2 else int(rng.integers(1, 256))
            spoiled.seek(at)
            spoiled.write(bytes([sound[at] ^ flip]))
            spoiled.flush()
            loaded, fault = loads_altered(zoo, file)
            if loaded or not isinstance(fault, CardInvalid | WeightsMismatch) or not fault.hint:
                wrong.append((at, flip, loaded, fault))
            spoiled.seek(at)
            spoiled.write(sound[at : at + 1])
            spoiled.flush()
    which = "each" if len(sound) < 10_000 else "every 997th"
    record("S13", load=f"{file}: {which} of {len(sound):,} bytes altered, one at a time", count=len(places),
           result=f"{len(wrong)} loaded or without advice; all others refused with a typed error that says what to do",
           ok=not wrong, extra=sum(loaded for _, _, loaded, _ in wrong))  # fmt: skip
    assert wrong == []


def test_the_shipped_zoo_without_its_seal_is_refused(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or who can delete a file could put any card in place of a shipped one."""
    monkeypatch.setattr(engines.catalog, "ZOO", zoo)
    assert set(Catalog.default().names()) == {NAME, "mr-cnn"}
    (zoo / SEAL).unlink()
    bare = Catalog.default()
    fault = bare.faults()["zoo"]
    record("S13", load="the seal of the shipped zoo deleted", count=1, ok=not bare.names(),
           result="no engine of it is loaded", extra=len(bare.names()))  # fmt: skip
    assert bare.names() == ()
    assert isinstance(fault, CardInvalid)
    assert fault.hint == "install the release again"


def test_files_that_are_none(zoo: Path, tmp_path: Path, parsed: list[str]) -> None:
    """A link to the true file, a pipe, a folder, a file that is cut off, an empty one, none at all."""
    done = []
    other = hashlib.sha256((zoo / "mr-cnn" / "model.fp32.onnx").read_bytes()).hexdigest()
    for file in ("model.fp32.onnx", "card.yaml"):
        path, aside = zoo / NAME / file, tmp_path / file
        shutil.copy(path, aside)

        ways: dict[str, Callable[[], object]] = {
            "link": partial(path.symlink_to, aside),
            "pipe": partial(os.mkfifo, path),
            "folder": path.mkdir,
            "cut": partial(path.write_bytes, aside.read_bytes()[:-1]),
            "empty": path.touch,
            "none": list,
        }
        for what, make in ways.items():
            path.unlink()
            make()
            parsed.clear()
            fault = refused(zoo)
            assert isinstance(fault, CardInvalid | WeightsMismatch), (file, what)
            assert set(parsed) - {"yaml"} == {other}, "that of the other engine alone"
            done.append(what)
            path.rmdir() if what == "folder" else path.unlink(missing_ok=True)
            shutil.copy(aside, path)
    record("R47", load="links, pipes, folders, cut off, empty and missing files", count=len(done),
           result="all refused; the engine beside goes on")  # fmt: skip


def test_weights_outside_of_the_file_are_refused(tmp_path: Path) -> None:
    """External data leads to other files by path, whatever the digest of the model is."""
    folder = onnx_samples.folder(tmp_path, onnx_samples.strided_network(), name=NAME)
    model = onnx.load(folder / "model.fp32.onnx")
    for tensor in model.graph.initializer:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        del tensor.external_data[:]
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", "../../secret"
        tensor.ClearField("raw_data")
    shutil.rmtree(folder)
    onnx_samples.folder(tmp_path, model, name=NAME)  # with the digest of this very file
    with pytest.raises(CardInvalid, match=r"self-contained|other files|external"):
        Catalog([tmp_path]).load(NAME, threads=1)
    record("R47", load="ONNX external data, digest as the card says", count=1, result="refused")


def test_a_card_of_another_release_or_without_a_seal(zoo: Path, tmp_path: Path) -> None:
    """What is not among the sealed ones does not pass as shipped; a site's own folder needs no seal."""
    shutil.copytree(zoo / NAME, zoo / "ct-new")
    text = (zoo / "ct-new" / "card.yaml").read_text().replace(f"name: {NAME}", "name: ct-new")
    (zoo / "ct-new" / "card.yaml").write_text(text)
    assert isinstance(Catalog([zoo]).faults()["ct-new"], CardInvalid)
    site = tmp_path / "site"
    shutil.copytree(zoo / "ct-new", site / "ct-new")
    assert Catalog([site]).names() == ("ct-new",)
    (zoo / SEAL).write_text("{")
    broken = Catalog([zoo])
    assert broken.names() == ()
    assert isinstance(broken.faults()["zoo"], CardInvalid)


def test_the_seal_of_the_zoo_is_current() -> None:
    """After a card was changed: ``python -m engines.canary``."""
    told = seals(ZOO)
    assert told is not None
    assert set(told) == {p.parent.name for p in ZOO.glob("*/card.yaml")}
    assert dict(Catalog.default().faults()) == {}
    assert json.loads((ZOO / SEAL).read_text()) == dict(told)


def test_it_is_an_event_and_the_worker_goes_on(
    sqlite_store: Store, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both kinds: a folder whose card is refused, and weights that are when the engine is loaded."""
    for name, file in ((NAME, "model.fp32.onnx"), ("mr-cnn", "card.yaml")):
        path = zoo / name / file
        path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    shutil.copytree(ZOO / "ct-gan", zoo / "ct-gan")
    catalog = Catalog([zoo])
    monkeypatch.setattr(Catalog, "default", classmethod(lambda *_a, **_k: catalog))
    shop: Workshop = worker._workshop(sqlite_store, 1, Place(), False)
    assert worker._warm_up(shop, [(NAME, "auto"), ("ct-gan", "auto")], [0.0] * SIZE)
    events = sqlite_store.events.list(name="engine.refused")
    told = {e.body["engine"]: e.body["because"].split(":")[0] for e in events}
    ok = told == {NAME: "WeightsMismatch", "mr-cnn": "CardInvalid"} and all(
        e.level == "critical" for e in events
    )
    record("R47", load="a worker started beside one altered card and one altered network", count=2, ok=ok,
           result="2 critical events, the others loaded")  # fmt: skip
    assert ok, told
    assert shop.proven("ct-gan", "auto").device == "cpu"
