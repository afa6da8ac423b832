"""What Luminode depends on, directly or not, is under licences that let it be shipped."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
_EXTRAS: dict[str, list[str]] = _PROJECT["optional-dependencies"]
_LGPL_ALLOWED = frozenset({"psycopg", "psycopg-binary"})
_COPYLEFT = re.compile(r"GPL|Affero|GNU (Lesser |Library )?General Public", re.IGNORECASE)
_LESSER = re.compile(r"LGPL|Lesser|Library General", re.IGNORECASE)


def needed(requirements: Iterable[str]) -> dict[str, Distribution | None]:
    """The packages that requirements lead to on this machine; None for one that is not installed."""
    found: dict[str, Distribution | None] = {}
    waiting, seen = [Requirement(r) for r in requirements], set[tuple[str, frozenset[str]]]()
    while waiting:
        wanted = waiting.pop()
        name, extras = str(canonicalize_name(wanted.name)), frozenset(wanted.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            found[name] = one = distribution(wanted.name)
        except PackageNotFoundError:
            found[name] = None
            continue
        waiting += [
            inner
            for inner in map(Requirement, one.requires or ())
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in ("", *extras))
        ]
    return found


def licences(one: Distribution) -> list[str]:
    """What a package's metadata says of its licence: expression, classifiers, the head of a free text."""
    meta = one.metadata
    texts = [meta[key].strip()[:200] for key in ("License-Expression", "License") if key in meta]
    texts += [c for c in meta.get_all("Classifier") or () if c.startswith("License ::")]
    return [t for t in texts if t]


def copyleft(text: str) -> bool:
    """Whether it binds those who ship it; of alternatives, the best counts."""
    return all(_COPYLEFT.search(way) is not None for way in re.split(r"\bOR\b", text))


def faults(packages: dict[str, Distribution | None], lgpl: frozenset[str] = frozenset()) -> list[str]:
    """What may not be shipped; ``lgpl`` names those that may be under the LGPL."""
    told = []
    for name, one in sorted(packages.items()):
        found = licences(one) if one is not None else []
        if one is not None and not found:
            told.append(f"{name}: its metadata names no licence")
        told += [
            f"{name}: {text}"
            for text in found
            if copyleft(text) and not (name in lgpl and _LESSER.search(text))
        ]
    return told


def test_no_dependency_is_under_the_gpl() -> None:
    packages = needed(_PROJECT["dependencies"])
    assert {"numpy", "pydicom", "imagecodecs", "typing-extensions"} <= packages.keys()
    assert [name for name, one in packages.items() if one is None] == []
    assert faults(packages) == []


@pytest.mark.parametrize("extra", sorted(_EXTRAS.keys() - {"dev"}))
def test_no_extra_is_under_the_gpl(extra: str) -> None:
    packages = needed(_EXTRAS[extra])
    if all(one is None for one in packages.values()):
        pytest.skip(f"nothing of the extra {extra} is installed")
    assert faults(packages, _LGPL_ALLOWED if extra == "postgres" else frozenset()) == []


def test_the_lgpl_stays_in_the_postgres_extra() -> None:
    assert not _LGPL_ALLOWED & needed(_PROJECT["dependencies"]).keys()


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("GPL V3.0", True),
        ("GPL-3.0-or-later", True),
        ("AGPL-3.0-only", True),
        ("LGPL-3.0-only", True),
        ("License :: OSI Approved :: GNU General Public License v3 (GPLv3)", True),
        ("License :: OSI Approved :: GNU Affero General Public License v3", True),
        ("MIT AND GPL-2.0-only", True),
        ("MIT OR GPL-2.0-only", False),
        ("BSD-3-Clause AND 0BSD AND MIT AND Zlib", False),
        ("License :: OSI Approved :: MIT License", False),
    ],
)
def test_what_counts_as_copyleft(text: str, bad: bool) -> None:
    assert copyleft(text) is bad
