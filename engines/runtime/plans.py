"""Compiled plans and what runtimes cache beside them, by what they were made of and for.

A plan is found by its key and by nothing else: the digest of the ONNX file, TensorRT's flavour and full version,
what it is for, the profile, the builder's options. If one of these differs it is another plan. So an update of a
driver, a new GPU or a new network never loads an old plan: it is missing, told as stale, and built again.
What makes a file trustworthy is engines/runtime/vault.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from engines.errors import PlanMismatch
from engines.runtime.flavour import flavour, options
from engines.runtime.gpu import Gpu, dotted
from engines.runtime.vault import Vault

_LOG = logging.getLogger("engines.plans")

Kind = Literal["plan", "timing", "kernels"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanKey:
    """What a plan is made of and for.

    Attributes
    ----------
    version
        Of the flavour, in full.
    gpu, driver
        Empty for a plan that any GPU of its capabilities runs (TensorRT for RTX).
    capabilities
        Of the GPU, or those it was built for ahead of time; ascending.
    profile
        Digest of :class:`engines.runtime.profile.Profile`.
    options
        Flags of the builder.
    """

    onnx_sha256: str
    flavour: str
    version: str
    gpu: str
    capabilities: tuple[str, ...]
    driver: str
    profile: str
    options: str

    def digest(self) -> str:
        """SHA-256 of all of it."""
        told = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(told.encode()).hexdigest()

    @property
    def target(self) -> str:
        """What it is for, in words."""
        many = ", ".join(map(dotted, self.capabilities))
        return f"{self.gpu} ({many}, driver {self.driver})" if self.gpu else f"capability {many}"


def for_gpu(onnx_sha256: str, name: str, version: str, gpu: Gpu, profile: str) -> PlanKey:
    """The key of a plan that is built on a GPU, for it.

    Parameters
    ----------
    name, version
        Of the flavour.
    profile
        Digest.
    """
    bound = flavour(name).bound_to_gpu
    return PlanKey(
        onnx_sha256=onnx_sha256,
        flavour=name,
        version=version,
        gpu=gpu.name if bound else "",
        capabilities=(gpu.compute_capability,),
        driver=gpu.driver if bound else "",
        profile=profile,
        options=options(name),
    )


def ahead_of_time(
    onnx_sha256: str, name: str, version: str, capabilities: Sequence[str], profile: str
) -> PlanKey:
    """The key of a plan for compute capabilities, wherever they are."""
    return PlanKey(
        onnx_sha256=onnx_sha256,
        flavour=name,
        version=version,
        gpu="",
        capabilities=tuple(sorted(set(capabilities), key=int)),
        driver="",
        profile=profile,
        options=options(name),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A file of the cache; ``key`` is None and ``fault`` says why if it is not to be trusted."""

    name: str
    kind: Kind | None = None
    key: PlanKey | None = None
    title: str = ""
    size: int = 0
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How it stands with a plan: ready, missing, stale (there is one for something else), or refused."""

    state: Literal["ready", "missing", "stale", "refused"]
    key: PlanKey
    words: str
    hint: str = ""


_DIFFERENCES: Mapping[str, str] = {
    "version": "another version of TensorRT",
    "gpu": "another GPU",
    "capabilities": "another compute capability",
    "driver": "another driver",
    "profile": "other sizes",
    "options": "other options of the builder",
}

BUILD = "python -m engines build"


def default_folder() -> Path:
    """Where plans are kept unless somebody says otherwise: the user's cache."""
    told = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (told if told.is_absolute() else Path.home() / ".cache") / "luminode" / "plans"


class Plans:
    """The plans of a host.

    Parameters
    ----------
    folder
        None for :func:`default_folder`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.vault = Vault(default_folder() if folder is None else folder)

    @property
    def folder(self) -> Path:
        return self.vault.folder

    @property
    def build(self) -> str:
        """The command that builds into this folder."""
        return (
            BUILD if self.folder == default_folder() else f"{BUILD} --plans {shlex.quote(str(self.folder))}"
        )

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Let a PlanMismatch that passes name the command that mends it in this folder."""
        try:
            yield
        except PlanMismatch as e:
            raise PlanMismatch(e.message, hint=e.hint.replace(BUILD, self.build)) from e

    def store(self, key: PlanKey, plan: bytes, *, title: str = "") -> None:
        """Keep a plan; ``title`` is for people.

        Raises
        ------
        PlanMismatch, RuntimeUnavailable
        """
        self.vault.put(_name("plan", key), plan, _label("plan", key, title))

    def load(self, key: PlanKey) -> bytes:
        """The bytes of a plan, verified: the only ones that may be deserialised.

        Raises
        ------
        PlanMismatch
            There is none, or it is not what it says; the hint says what to do.
        """
        with self.telling():
            found = self.vault.get(_name("plan", key))
            if found is not None:
                label, content = found
                _same("plan", key, label)
                return content
        now = self.state(key)
        raise PlanMismatch(now.words, hint=now.hint)

    @contextlib.contextmanager
    def lock(self, key: PlanKey, wait_s: float = 900.0) -> Iterator[None]:
        """Be the only process that builds this plan.

        Raises
        ------
        PlanMismatch
        RuntimeUnavailable
            Another has been building it for all of ``wait_s``.
        """
        with self.vault.lock(_name("plan", key), wait_s):
            yield

    def find(self, onnx_sha256: str, name: str, version: str, gpu: Gpu, profile: str) -> PlanKey:
        """The key under which a plan for a GPU is, or would be: built for it, or ahead of time for its like."""
        wanted = for_gpu(onnx_sha256, name, version, gpu, profile)
        if flavour(name).bound_to_gpu or self.state(wanted).state == "ready":
            return wanted
        for kept in self.list():
            if kept.kind != "plan" or kept.key is None or gpu.compute_capability not in kept.key.capabilities:
                continue
            if replace(kept.key, capabilities=wanted.capabilities) == wanted:
                return kept.key
        return wanted

    def state(self, key: PlanKey) -> Status:
        """How it stands with a plan; its content is verified only when it is loaded."""
        try:
            label = self.vault.label(_name("plan", key))
            if label is not None:
                _same("plan", key, label)
                return Status(state="ready", key=key, words=f"ready for {key.target}")
            others = [k.key for k in self.list() if k.kind == "plan" and k.key is not None]
        except PlanMismatch as e:
            hint = e.hint.replace(BUILD, self.build)
            return Status(state="refused", key=key, words=e.message, hint=hint)
        near = [k for k in others if (k.onnx_sha256, k.flavour) == (key.onnx_sha256, key.flavour)]
        if not near:
            return Status(state="missing", key=key, words=f"no plan for {key.target}", hint=self.build)
        seen = min((_differences(key, k) for k in near), key=len)
        return Status(state="stale", key=key, words=f"the plan is of {', '.join(seen)}", hint=self.build)

    def list(self) -> tuple[Kept, ...]:
        """Everything in the folder, what is not to be trusted too.

        Raises
        ------
        PlanMismatch
            The folder itself is not to be trusted.
        """
        return tuple(map(self._kept, self.vault.names()))

    def purge(self, wanted: Callable[[Kept], bool]) -> int:
        """Remove what is refused, and what is not ``wanted``; returns how many files."""
        gone = [k for k in self.list() if k.key is None or not wanted(k)]
        for one in gone:
            self.vault.remove(one.name)
        return len(gone)

    def cached(self, kind: Kind, key: PlanKey, gpu: Gpu) -> bytes | None:
        """What a runtime kept for a plan on a GPU: ``timing`` of tactics, compiled ``kernels``.

        What is not to be trusted counts as not there: it costs time, not the plan.
        """
        key = _beside(kind, key, gpu)
        try:
            found = self.vault.get(_name(kind, key))
            if found is not None:
                _same(kind, key, found[0])
        except PlanMismatch as e:
            _LOG.warning("a cache of %s is not used: %s", key.flavour, e.message)
            return None
        return None if found is None else found[1]

    def cache(self, kind: Kind, key: PlanKey, gpu: Gpu, content: bytes) -> None:
        """Keep what :meth:`cached` returns.

        Raises
        ------
        PlanMismatch, RuntimeUnavailable
        """
        key = _beside(kind, key, gpu)
        self.vault.put(_name(kind, key), content, _label(kind, key, f"{kind} of {gpu.name}"))

    def _kept(self, name: str) -> Kept:
        try:
            label = self.vault.label(name)
            if label is None:
                return Kept(name=name, fault="it has just been removed")
            key = _key(label)
            if _name(label["kind"], key) != name:
                return Kept(name=name, fault="it lies under another name than it was written with")
        except (PlanMismatch, KeyError, TypeError, ValueError) as e:
            return Kept(name=name, fault=e.message if isinstance(e, PlanMismatch) else "its label is damaged")
        return Kept(name=name, kind=label["kind"], key=key, title=label["title"], size=label["size"])


def _beside(kind: Kind, key: PlanKey, gpu: Gpu) -> PlanKey:
    """The key of a cache: of one GPU and driver always; timings are shared by all networks."""
    key = replace(key, gpu=gpu.name, capabilities=(gpu.compute_capability,), driver=gpu.driver)
    return replace(key, onnx_sha256="", profile="") if kind == "timing" else key


def _name(kind: Kind, key: PlanKey) -> str:
    return f"{key.digest()[:40]}.{kind}"


def _label(kind: Kind, key: PlanKey, title: str) -> dict[str, Any]:
    return {"kind": kind, "key": asdict(key), "title": title}


def _key(label: Mapping[str, Any]) -> PlanKey:
    told = dict(label["key"])
    return PlanKey(**(told | {"capabilities": tuple(told["capabilities"])}))


def _same(kind: Kind, key: PlanKey, label: Mapping[str, Any]) -> None:
    """A sealed file that lies under another name is a plan for something else."""
    try:
        fits = label["kind"] == kind and _key(label) == key
    except (KeyError, TypeError, ValueError):
        fits = False
    if not fits:
        raise PlanMismatch(f"{_name(kind, key)} was written for something else", hint=f"build again: {BUILD}")


def _differences(key: PlanKey, other: PlanKey) -> tuple[str, ...]:
    here, there = asdict(key), asdict(other)
    told = []
    for field, words in _DIFFERENCES.items():
        if here[field] == there[field]:
            continue
        detail = f" ({there[field]}, here {here[field]})" if field in ("version", "gpu", "driver") else ""
        told.append(words + detail)
    return tuple(told)
