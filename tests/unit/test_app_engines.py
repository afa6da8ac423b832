"""Where engines run, as the configuration says; which GPU a worker is shown, and whose signs it heeds."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.app.engines import place, shown, threads
from node.config.load import parse
from node.config.schema import Config
from node.enhance import signs
from node.errors import ConfigError
from node.process import CUDA_VISIBLE, show_gpu

BASE = "node: {accept_from: [CT1]}\nstore: {spool: var/spool}\n"
MIG = "MIG-4c7a0b1e-1234-5678-9abc-def012345678"


def config(gpu: str = "") -> Config:
    return parse(BASE + (f"gpu: {gpu}\n" if gpu else "")).config


def test_plans_lie_beside_the_spool_unless_somebody_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert place(config()).plans == tmp_path / "var" / "plans"
    told = place(config("{plans: elsewhere/plans, memory: 4GB}"))
    assert (told.plans, told.most_bytes, told.gpu) == (tmp_path / "elsewhere" / "plans", 4 * 10**9, 0)
    assert place(config()).most_bytes == 0


@pytest.mark.parametrize(
    ("devices", "outer", "each"),
    [
        ("", None, (None,)),
        ("", "3", (None,)),
        ("{devices: []}", None, ("",)),
        ("{devices: [0, 2]}", None, ("0", "2")),
        ("{devices: [0, 1]}", "5,7", ("5", "7")),
        ("{devices: [1]}", "5", ("",)),
        ("{devices: [0]}", "GPU-0123456789ab", ("GPU-0123456789ab",)),
        (f"{{devices: [{MIG}]}}", "0", (MIG,)),
    ],
)
def test_each_worker_is_shown_its_gpu(devices: str, outer: str | None, each: tuple[str | None, ...]) -> None:
    assert shown(config(devices), {} if outer is None else {CUDA_VISIBLE: outer}) == each


def test_showing_a_gpu_is_for_the_whole_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUDA_VISIBLE, "7")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    show_gpu(None)
    assert os.environ[CUDA_VISIBLE] == "7"
    show_gpu(MIG)
    assert (os.environ[CUDA_VISIBLE], os.environ["CUDA_DEVICE_ORDER"]) == (MIG, "PCI_BUS_ID")
    show_gpu("")
    assert os.environ[CUDA_VISIBLE] == ""


def test_workers_share_the_cores() -> None:
    assert threads() >= 1
    assert threads(10_000) == 1
    assert threads(2) <= threads()


@pytest.mark.parametrize(
    ("gpu", "fault"),
    [
        ("{devices: [-1]}", "is no GPU"),
        ("{devices: [first]}", "is no GPU"),
        ("{devices: [GPU-xyz]}", "is no GPU"),
        ("{devices: [0, 0]}", "names a GPU twice"),
        ("{memory: 10MB}", "memory"),
        ("{memory: lots}", "is no size"),
        ("{plans: ''}", "empty"),
        ("{device: 0}", "did you mean devices?"),
    ],
)
def test_what_does_not_fit_is_refused(gpu: str, fault: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config(gpu)
    assert fault in "\n".join(map(str, refused.value.faults))


# signs ------------------------------------------------------------------------------------------------
XID = "NVRM: Xid (PCI:0000:{bus}:00): 79, pid=1234, GPU has fallen off the bus."
LOST = "NVRM: GPU 0000:{bus}:00.0: GPU has fallen off the bus."


@pytest.mark.parametrize("line", [XID, LOST])
def test_a_line_of_the_kernel_is_heeded_by_the_worker_on_that_gpu(line: str) -> None:
    (mine,) = signs.addresses("00000000:3B:00.0")
    assert signs.told(line.format(bus="3b"))
    assert signs.told(line.format(bus="3b"), mine)
    assert not signs.told(line.format(bus="af"), mine)
    assert signs.told("NVRM: GPU is lost", mine), "a line that names none is everybody's"


class NvmlError(Exception):
    """NVML's root class."""


def nvml(**more: Any) -> Any:
    """What NVML answers on a host with two GPUs, the second with a MIG slice."""

    def refuse(*_: object) -> Any:
        raise NvmlError

    def by_uuid(uuid: str) -> str:
        return "slice" if uuid == MIG else refuse()

    return SimpleNamespace(
        NVMLError=NvmlError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda i: f"gpu{i}",
        nvmlDeviceGetHandleByUUID=by_uuid,
        nvmlDeviceGetDeviceHandleFromMigDeviceHandle=lambda _: "gpu1",
        nvmlDeviceGetPciInfo=lambda gpu: SimpleNamespace(busId=f"00000000:{'3B' if gpu == 'gpu0' else 'AF'}:00.0"),
        nvmlDeviceGetTotalEccErrors=refuse,
        NVML_MEMORY_ERROR_TYPE_UNCORRECTED=1,
        NVML_VOLATILE_ECC=0,
        nvmlEventSetCreate=lambda: None,
        nvmlDeviceRegisterEvents=refuse,
        nvmlEventTypeXidCriticalError=8,
        **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("device", "watched", "bus"),
    [
        (None, ["gpu0", "gpu1"], None),
        ("0", ["gpu0"], 0x3B),
        ("1", ["gpu1"], 0xAF),
        (MIG, ["gpu1"], 0xAF),
        ("9", ["gpu0", "gpu1"], None),
        ("GPU-gone-gone", ["gpu0", "gpu1"], None),
    ],
)
def test_nvml_is_asked_for_the_gpu_of_the_worker(
    device: str | None, watched: list[str], bus: int | None
) -> None:
    found = signs.Nvml(nvml(), device)
    assert found._gpus == watched
    assert found.of == (None if bus is None else (0, bus, 0))


def test_every_name_of_nvml_exists_in_its_bindings() -> None:
    real = pytest.importorskip("pynvml", reason="nvidia-ml-py is not here")
    for name in (
        "nvmlDeviceGetHandleByUUID",
        "nvmlDeviceGetDeviceHandleFromMigDeviceHandle",
        "nvmlDeviceGetPciInfo",
    ):
        assert hasattr(real, name)
