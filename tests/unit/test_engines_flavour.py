"""The two TensorRTs: every name used is one of the real bindings'; what is not there is refused in words."""

from __future__ import annotations

import ast
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engines import __main__ as command
from engines.base import Card
from engines.catalog import ZOO, Catalog
from engines.errors import GpuUnusable, RuntimeUnavailable
from engines.runtime import build, flavour, gpu, onnx, profile
from engines.runtime.gpu import Gpu

RTX = "tensorrt_rtx"
needs_rtx = [
    pytest.mark.tensorrt,
    pytest.mark.skipif(RTX not in flavour.installed(), reason="TensorRT for RTX is not installed"),
]

CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "fault": "ParserError",
    "timings": "ITimingCache",
}
"""What the names in engines/runtime/build.py stand for."""


@pytest.fixture
def rtx() -> Any:
    return flavour.bindings(RTX)


def attributes(path: str, of: str) -> set[str]:
    """Names that a file takes from a variable, in this process's source."""
    tree = ast.parse(Path(path).read_text())
    return {
        n.attr
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == of
    }


class TestNames:
    pytestmark = needs_rtx

    @pytest.mark.parametrize("file", [build.__file__, flavour.__file__])
    def test_every_name_of_the_module_is_there(self, rtx: Any, file: str) -> None:
        used = attributes(file, "module") - {"__version__"}
        assert len(used) >= 2
        assert {n for n in used if not hasattr(rtx, n)} == set()

    @pytest.mark.parametrize(("variable", "kind"), sorted(CLASSES.items()))
    def test_every_method_is_there(self, rtx: Any, variable: str, kind: str) -> None:
        used = attributes(build.__file__, variable)
        assert used, f"build.py no longer uses {variable}"
        assert {n for n in used if not hasattr(getattr(rtx, kind), n)} == set()

    def test_the_others(self, rtx: Any) -> None:
        assert hasattr(rtx.IOptimizationProfile, "set_shape")
        assert hasattr(rtx.MemoryPoolType, "WORKSPACE")
        assert {n for n in dir(rtx.IProgressMonitor) if n[0] != "_"} == {
            "phase_start",
            "step_complete",
            "phase_finish",
        }

    def test_the_table_knows_the_flags_and_the_capabilities(self, rtx: Any) -> None:
        row = flavour.flavour(RTX)
        flags = set(rtx.BuilderFlag.__members__)
        assert {*row.flags_on, *row.flags_off} <= flags
        seen = {n.removeprefix("SM") for n in rtx.ComputeCapability.__members__} - {"NONE", "CURRENT"}
        assert seen == row.capabilities
        assert hasattr(rtx.ICudaEngine, "create_runtime_config") is row.runtime_cache

    def test_float32_stays_float32(self, rtx: Any) -> None:
        row = flavour.flavour(RTX)
        builder = rtx.Builder(flavour.logger(RTX)[0])
        plain = builder.create_builder_config()
        sizes = profile.of(Catalog.default().card("ct-cnn"))
        config = build._config(rtx, row, builder, sizes, ("86", "120"))
        assert plain.get_flag(rtx.BuilderFlag.TF32), "the library's default has changed: see flags_off"
        assert not config.get_flag(rtx.BuilderFlag.TF32)
        assert config.get_flag(rtx.BuilderFlag.REQUIRE_USER_ALLOCATION)
        sizing = rtx.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10
        assert plain.get_preview_feature(sizing), "the library's default has changed: see previews"
        assert config.get_preview_feature(sizing)
        assert config.num_optimization_profiles == 1
        sm = rtx.ComputeCapability
        assert [config.get_compute_capability(i) for i in (0, 1)] == [sm.SM86, sm.SM120]

    def test_timings_that_are_not_taken_cost_time_and_no_plan(self) -> None:
        class Config:
            """Takes what it made of nothing, and of what it kept as told."""

            def __init__(self, made: object, taken: bool) -> None:
                self.asked: list[bytes] = []
                self._made, self._taken = made, taken

            def create_timing_cache(self, content: bytes) -> object:
                self.asked.append(content)
                return content or "empty" if content == b"" else self._made

            def set_timing_cache(self, made: object, ignore_mismatch: bool) -> bool:
                assert not ignore_mismatch
                return made == "empty" or self._taken

        for made, taken, wanted in (("kept", True, "kept"), ("kept", False, "empty"), (None, True, "empty")):
            config = Config(made, taken)
            assert build._timings(config, b"of before") == wanted
            assert config.asked == [b"of before", b""][: 1 if wanted == "kept" else 2]
        first = Config(None, False)
        assert build._timings(first, None) == "empty"
        assert first.asked == [b""]

    def test_the_version_is_told_in_full(self, rtx: Any) -> None:
        assert flavour.version(RTX) == rtx.__version__
        assert len(flavour.version(RTX).split(".")) >= 3
        assert flavour.strongly_typed(rtx) == 1


def test_nothing_heavy_is_imported_before_it_is_asked_for() -> None:
    code = (
        "import sys\n"
        "import engines.verbs, engines.rebuild, engines.runtime.build, engines.runtime.plans\n"
        "heavy = ('tensorrt', 'tensorrt_rtx', 'tensorrt_rtx_libs', 'tensorrt_rtx_bindings', 'cuda', 'pynvml')\n"
        "assert not set(heavy) & set(sys.modules), set(heavy) & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=ZOO.parent.parent)


# what is not there --------------------------------------------------------------------------------
@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place where a package called tensorrt can be put: before any real one."""
    monkeypatch.syspath_prepend(tmp_path)
    before = {n: m for n, m in sys.modules.items() if n.split(".")[0] == "tensorrt"}
    for name in before:
        monkeypatch.delitem(sys.modules, name)
    flavour.bindings.cache_clear()
    yield tmp_path / "tensorrt.py"
    sys.modules.pop("tensorrt", None)
    flavour.bindings.cache_clear()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("__version__ = '8.6.1'", "TensorRT 8.6.1 is not supported"),
        ("__version__ = '12.0.0'", "TensorRT 12.0.0 is not supported"),
        # It has no set_device_memory: the size of a scratch memory cannot be told.
        ("__version__ = '10.0.1'", "TensorRT 10.0.1 is not supported"),
        ("raise OSError('libnvinfer.so.10: cannot open')", "does not load.*libnvinfer"),
        ("raise RuntimeError('no libraries: see the index')", "does not load.*see the index"),
        ("raise ModuleNotFoundError('tensorrt_libs')", "is not installed"),
        ("version = 1", "does not load"),
    ],
)
def test_a_library_that_will_not_do_is_refused_in_words(library: Path, content: str, said: str) -> None:
    library.write_text(content)
    with pytest.raises(RuntimeUnavailable, match=said) as refused:
        flavour.bindings("tensorrt")
    assert refused.value.hint
    assert "tensorrt" not in flavour.installed()


def test_the_bound_of_memory_is_onnx_runtimes_too() -> None:
    assert onnx.cuda_options(1, 0)["device_id"] == 1
    assert "gpu_mem_limit" not in onnx.cuda_options(1, 0)
    assert onnx.cuda_options(0, 4 << 30)["gpu_mem_limit"] == 4 << 30
    assert onnx.cuda_options(0, 0)["use_tf32"] == 0


def test_there_are_two_flavours() -> None:
    assert list(flavour.FLAVOURS) == ["tensorrt", "tensorrt_rtx"], "the preferred one first"
    with pytest.raises(RuntimeUnavailable, match="no flavour 'tensorflow'"):
        flavour.flavour("tensorflow")
    assert all("-TF32" in flavour.options(n) for n in flavour.FLAVOURS)
    assert "RUNTIME_ACTIVATION_RESIZE_10_10" in flavour.options("tensorrt")


@needs_rtx[1]
def test_a_version_that_does_not_know_a_preview_builds_without() -> None:
    """TensorRT 10.1 to 10.9 do not; those after it, and that for RTX, call it the same."""
    rtx, row, asked = flavour.bindings(RTX), flavour.flavour("tensorrt"), list[tuple[Any, bool]]()
    config = SimpleNamespace(set_preview_feature=lambda *told: asked.append(told))
    build._previews(SimpleNamespace(PreviewFeature=SimpleNamespace()), row, config)
    assert asked == []
    build._previews(rtx, row, config)
    assert asked == [(rtx.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10, True)]


# which GPU ----------------------------------------------------------------------------------------
def on(capability: str) -> Gpu:
    return Gpu(name="NVIDIA X", compute_capability=capability, driver="580.1")


@pytest.mark.parametrize(
    ("name", "capability", "runs"),
    [
        *[(RTX, c, True) for c in ("75", "80", "86", "89", "120", "121")],
        *[(RTX, c, False) for c in ("61", "70", "90", "100", "103")],
        *[("tensorrt", c, True) for c in ("75", "80", "86", "89", "90", "100", "120")],
        *[("tensorrt", c, False) for c in ("61", "70")],
    ],
)
def test_which_flavour_runs_where(name: str, capability: str, runs: bool) -> None:
    if runs:
        flavour.check_gpu(name, on(capability))
        return
    with pytest.raises(
        RuntimeUnavailable, match=rf"NVIDIA X .compute capability {gpu.dotted(capability)}"
    ) as e:
        flavour.check_gpu(name, on(capability))
    assert ("TensorRT does" in e.value.hint) == (capability in ("90", "100", "103"))


@pytest.mark.parametrize("text", ["", "8", "8.6", "sm86", "-86", "86000", "８６"])
def test_what_is_no_capability(text: str) -> None:
    with pytest.raises(RuntimeUnavailable, match="no compute capability"):
        flavour.check_capability(RTX, text)


def test_the_gpus_of_this_machine() -> None:
    for one in gpu.local():
        flavour.check_capability("tensorrt", one.compute_capability)
        assert one.name
        assert one.driver


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("NO_DEVICE", ""),
        ("STUB_LIBRARY", ""),
        ("SYSTEM_DRIVER_MISMATCH", "does not start: SYSTEM_DRIVER_MISMATCH"),
        ("UNKNOWN", "does not start: UNKNOWN"),
    ],
)
def test_a_driver_that_does_not_start_is_no_missing_gpu(
    code: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A driver that was updated under a running system, most often: the node is to say so, not to be slow."""
    real = pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed")
    answer = (getattr(real.CUresult, f"CUDA_ERROR_{code}"),)
    there = SimpleNamespace(CUresult=real.CUresult, cuInit=lambda _flags: answer)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", there)  # type: ignore[arg-type]
    if not said:
        assert gpu.local() == ()
        return
    with pytest.raises(GpuUnusable, match=said) as refused:
        gpu.local()
    assert "nvidia-smi" in refused.value.hint
    assert command.main(["build", "ct-cnn"]) == 1
    assert said in capsys.readouterr().err


def test_the_ordinal_makes_no_other_gpu() -> None:
    assert on("86") == Gpu(name="NVIDIA X", compute_capability="86", driver="580.1", index=1)


# what it says -------------------------------------------------------------------------------------
class TestWords:
    pytestmark = needs_rtx

    def test_complaints_are_logged_in_one_line_and_kept_for_their_thread(
        self, rtx: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        heard, words = flavour.logger(RTX)
        assert flavour.logger(RTX)[0] is heard
        words.take()
        severity = rtx.ILogger.Severity
        with caplog.at_level(logging.DEBUG, f"engines.{RTX}"):
            other = threading.Thread(target=heard.log, args=(severity.ERROR, "of another"))
            other.start()
            other.join()
            heard.log(severity.ERROR, "two\nlines\x1b[31m " + "x" * 1000)
            heard.log(severity.WARNING, "a warning")
            heard.log(severity.INFO, "told")
            heard.log(severity.VERBOSE, "chatter")
        (told,) = words.take()
        assert told.startswith("two lines [31m xxx")
        assert len(told) == 400
        assert words.take() == ()
        levels = [(r.levelname, r.getMessage()) for r in caplog.records]
        assert levels[0] == ("ERROR", "of another")
        assert levels[1:] == [("ERROR", told), ("WARNING", "a warning"), ("DEBUG", "told")]


# sizes --------------------------------------------------------------------------------------------
def card(name: str = "identity") -> Card:
    return Catalog.default().card(name)


def test_sizes_are_those_of_the_modalities() -> None:
    ct, mr, both = (profile.of(card(n)) for n in ("ct-cnn", "mr-cnn", "identity"))
    assert [r.best for r in (*ct.ranges, *mr.ranges)] == [(8, 512, 512), (8, 256, 256)]
    assert both.ranges == ct.ranges + mr.ranges
    assert all(r.least == (1, 8, 8) and r.most == (16, 1024, 1024) for r in both.ranges)
    assert ct.buckets == (1, 4, 8, 16)
    assert len({p.digest() for p in (ct, mr, both, profile.of(card("ct-cnn"), buckets=(1, 4)))}) == 4
    assert ct.digest() == profile.of(card("ct-sr2")).digest()


@pytest.mark.parametrize(
    ("size", "number"),
    [
        ((1, 512, 512), 0),
        ((16, 256, 256), 1),
        ((4, 320, 320), 1),
        ((4, 448, 448), 0),
        ((1, 64, 64), 1),
        ((16, 1024, 1024), 0),
        ((17, 512, 512), None),
        ((1, 8, 512), 1),
        ((1, 7, 512), None),
        ((1, 1032, 512), None),
    ],
)
def test_a_size_finds_its_profile(size: tuple[int, int, int], number: int | None) -> None:
    assert profile.of(card("identity")).number(*size) == number


def test_sizes_are_multiples_of_the_alignment() -> None:
    made = profile.of(card("ct-cnn"))
    assert made.alignment == 8
    assert made.number(1, 516, 512) is None
    assert made.number(1, 512, 508) is None


def test_a_group_is_run_in_buckets() -> None:
    made, groups = profile.of(card()), []
    for n in range(1, 40):
        left, parts = n, []
        while left:
            parts.append(made.bucket(left))
            left -= parts[-1]
        assert set(parts) <= set(made.buckets)
        groups.append(len(parts))
    assert groups[4] == 2, "five are four and one"
    assert max(groups) <= 2 + 1 + 1 + 3
