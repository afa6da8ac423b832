"""The rules of the house, held by a machine: what is documented, who prints, who loads what, how long a file is."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.cli.reference import verbs
from node.config.explain import keys

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [p for room in ("node", "engines", "training") for p in sorted((ROOT / room).rglob("*.py"))]
CODE = [p for p in SOURCES if "migrations/versions" not in p.as_posix()]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
LONGEST = 500

HEAVY = ("torch", "tensorrt", "tensorrt_rtx", "scipy", "skimage", "pywt", "onnxruntime", "cuda")
"""What only the worker loads, and only when an engine is loaded: it costs seconds and hundreds of megabytes."""

WAITS_FOR_PROCESSES = {"test_enhance_guardian.py"}
"""Unit tests that look after real child processes, which have nothing to wait on but time."""


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def calls(path: Path) -> Iterator[tuple[int, str]]:
    """(line, name) of every call in a file: ``print``, and ``.sleep`` for what a module or an object does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = node.func
            yield node.lineno, f".{called.attr}" if isinstance(called, ast.Attribute) else ast.unparse(called)


# documents ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("page", ["config.yaml", "docs/configuration.md"])
def test_every_config_key_is_documented(page: str) -> None:
    text = (ROOT / page).read_text()
    if page == "config.yaml":
        there = {k.path for k in keys() if re.search(rf"(?m)(^|[{{,]|# ) *{k.path.split('.')[-1]}:", text)}
    else:
        there = {k.path for k in keys() if f"`{k.path}`" in text or f"## {k.path}\n" in text}
    assert {k.path for k in keys()} - there == set()


def test_every_verb_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    assert {v.name for v in verbs() if f"\n## luminode {v.name}\n" not in text} == set()


# code ---------------------------------------------------------------------------------------------
def test_nobody_prints_but_the_command_line() -> None:
    printing = [
        f"{name(p)}:{line}"
        for p in CODE
        if not name(p).startswith("node/cli/")
        for line, called in calls(p)
        if called == "print"
    ]
    assert printing == []


def test_unit_tests_do_not_sleep() -> None:
    sleeping = [
        f"{name(p)}:{line}"
        for p in TESTS
        if name(p).startswith("tests/unit/") and p.name not in WAITS_FOR_PROCESSES
        for line, called in calls(p)
        if called in ("sleep", ".sleep")
    ]
    assert sleeping == []


def test_every_file_of_tests_asserts_something() -> None:
    def asserts(path: Path) -> bool:
        found = any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(path.read_text())))
        return found or any(called in (".raises", ".fail") for _, called in calls(path))

    assert [name(p) for p in TESTS if p.name.startswith("test_") and not asserts(p)] == []


def test_files_are_short() -> None:
    lengths = {name(p): len(p.read_text().splitlines()) for p in SOURCES}
    assert {path: n for path, n in lengths.items() if n > LONGEST} == {}


def stubs(path: Path) -> Iterator[int]:
    """Lines with a mark of unfinished work."""
    text = path.read_text()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and re.search(r"\b(TODO|FIXME|XXX|HACK)\b", token.string):
            yield token.start[0]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Raise) and "NotImplementedError" in ast.dump(node):
            yield node.lineno


def test_nothing_is_a_stub() -> None:
    assert [f"{name(p)}:{line}" for p in CODE for line in stubs(p)] == []


# docstrings ---------------------------------------------------------------------------------------
OWED: dict[str, str] = {
    "node/deliver/folder.py": "Folder.echo",
    "node/dicom/contents.py": "Verdict",
    "node/dicom/encoding.py": "Encoding",
    "node/dicom/policy.py": "Do Row Private",
    "node/model.py": "SeriesState JobState DeliveryState SeriesKey Series Action Lease DerivedSeries",
    "node/store/arrivals.py": "key_of OpenSeries.write",
    "node/store/codec.py": "pack_series_header unpack_series_header",
    "node/store/outbox.py": "write_derived write_deliveries",
    "node/store/outcomes.py": "read_outcomes write_outcomes progress",
    "node/store/rows.py": "series_key series instance association association_values job delivery "
    "derived_instance decision derived_values",
    "node/store/tables.py": "Base DerivedRow DerivedInstanceRow OutcomeRow ConfigRow EventRow",
    "node/trial/headers.py": "fill",
}
"""Public names that still lack a docstring. Take them out as they get one; nothing comes in."""

SHORT = 6
"""Lines up to which a public method may speak for itself: `close`, `get`, a property."""


def undocumented(path: Path) -> Iterator[str]:
    """Public functions and classes without a docstring, as ``path:Name``.

    A class that the module's docstring explains (the trees of errors) is documented there.
    """
    module = ast.parse(path.read_text())
    prose = ast.get_docstring(module) or ""
    if not prose and module.body:
        yield f"{name(path)}:"
    for node in module.body:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or node.name[0] == "_":
            continue
        if ast.get_docstring(node) is None and not re.search(rf"\b{node.name}\b", prose):
            yield f"{name(path)}:{node.name}"
        for method in node.body if isinstance(node, ast.ClassDef) else ():
            if (
                isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef))
                and method.name[0] != "_"
                and ast.get_docstring(method) is None
                and (method.end_lineno or 0) - method.body[0].lineno >= SHORT
            ):
                yield f"{name(path)}:{node.name}.{method.name}"


def test_what_is_public_has_a_docstring() -> None:
    owed = {f"{path}:{each}" for path, names in OWED.items() for each in names.split()}
    found = {each for path in CODE for each in undocumented(path)}
    assert sorted(found - owed) == []


# imports ------------------------------------------------------------------------------------------
def loaded(imports: str) -> set[str]:
    """Which heavy packages are loaded after these statements, in a process of their own."""
    program = f"import sys\n{imports}\nprint(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    told = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    return set(told.stdout.split()) & set(HEAVY)


@pytest.mark.parametrize(
    "imports",
    [
        "import engines",
        "from engines.catalog import Catalog\nassert Catalog.default().names()",
        "import node.cli",
        "import node.app.roles, node.app.__main__",
        "import node.receive.server, node.gather.gatherer, node.housekeep, node.deliver.deliverer",
        "import node.enhance.guardian, node.enhance.worker",
    ],
)
def test_numerical_libraries_are_left_to_the_worker(imports: str) -> None:
    assert loaded(imports) == set()


def test_contracts_between_the_rooms_hold() -> None:
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    told = subprocess.run(
        [sys.executable, "-c", program, "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout + told.stderr


def test_contracts_name_every_room() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    floors = {c["containers"][0]: c for c in settings["contracts"] if c["name"].startswith("floors of")}
    assert set(floors) == {"node", "engines"}
    for package, contract in floors.items():
        rooms = {
            p.stem for p in (ROOT / package).iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()
        }
        named = {room.strip() for layer in contract["layers"] for room in layer.split("|")}
        assert contract["exhaustive"]
        assert named == rooms - {"__init__"}
