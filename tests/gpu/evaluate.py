"""``make gpu``: everything that a GPU is asked, in one command; writes docs/evaluation/gpu.md and gpu.json.

Tries which flavours of TensorRT run there, builds the plans of every learned engine in both precisions for all of them,
compares each with ONNX Runtime in fp32, times the full path, the networks and our kernels alone and the networks under
torch and CUDA graphs beside the roofline, and looks at the bound of memory. Without a GPU it says so, measures nothing
and writes nothing.

``--dry-run`` goes the same way on the CPU, small, to see that it runs; its files say so and go anywhere but to docs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from engines.catalog import Catalog
from engines.runtime import gpu
from tests.gpu.parts import BATCHES, EACH, PARTS, Asked

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PART_S = 3600
LIBRARIES = (
    "tensorrt",
    "tensorrt-rtx-cu13-libs",
    "onnxruntime",
    "onnxruntime-gpu",
    "cuda-python",
    "torch",
    "numpy",
)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu.evaluate", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("engines", nargs="*", help="names; none means all that have a network")
    parser.add_argument(
        "--out", type=Path, default=None, help="folder for gpu.md and gpu.json; else docs/evaluation"
    )
    parser.add_argument(
        "--plans", type=Path, default=None, help="keep the plans there; else they are thrown away"
    )
    parser.add_argument(
        "--repeat", type=int, default=30, help="runs of each measurement; figures are medians"
    )
    parser.add_argument(
        "--tflops",
        type=float,
        default=0.0,
        help="dense fp16 TFLOP/s of the card, for the roofline; else measured",
    )
    parser.add_argument("--gbs", type=float, default=0.0, help="GB/s of its memory, the same")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, small: to see that it runs")
    parser.add_argument("--part", choices=list(PARTS), help="one part, as JSON on standard output")
    asked = parser.parse_args(given)
    asked.repeat = max(1, asked.repeat)
    if asked.dry_run and asked.out is None and asked.part is None:
        parser.error("--dry-run needs --out")
    if asked.dry_run and asked.out is not None and asked.out.resolve().is_relative_to(DOCS):
        parser.error("a dry run measures nothing: it does not go to docs")
    catalog = Catalog.default()
    unknown = [n for n in asked.engines if n not in catalog.names() or not catalog.models(n)]
    if unknown:
        parser.error(f"no engine with a network: {', '.join(unknown)}")
    asked.engines = asked.engines or [n for n in catalog.names() if catalog.models(n)]
    return asked


def machine() -> dict[str, Any]:
    """What it was measured on."""
    cards = gpu.local()
    told: dict[str, Any] = {
        "gpu": cards[0].name if cards else "none",
        "compute_capability": cards[0].compute_capability if cards else "",
        "driver": cards[0].driver if cards else "",
        "gpus": len(cards),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    told["versions"] = {}
    for name in LIBRARIES:
        try:
            told["versions"][name] = version(name)
        except PackageNotFoundError:
            continue
    return told


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def run(part: str, asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One part, in a process of its own or in one for each engine: its rows, and why some are missing."""
    groups = [[one] for one in asked.engines] if part in EACH else [asked.engines]
    done = [_child(part, asked, folder, engines) for engines in groups]
    return {
        "rows": [row for one in done for row in one["rows"]],
        "failed": "; ".join(
            f"{' '.join(engines)} {one['failed']}" if len(groups) > 1 else one["failed"]
            for engines, one in zip(groups, done, strict=True)
            if one["failed"]
        ),
    }


def _child(part: str, asked: argparse.Namespace, folder: Path, engines: Sequence[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.gpu.evaluate", *engines, "--part", part, "--plans", str(folder)]
    command += ["--repeat", str(asked.repeat), "--tflops", str(asked.tflops), "--gbs", str(asked.gbs)]
    command += ["--dry-run"] if asked.dry_run else []
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PART_S, check=False)
    except subprocess.TimeoutExpired:
        return {"rows": [], "failed": f"did not end within {PART_S} s"}
    last = (done.stderr.strip().splitlines() or [""])[-1]
    if done.returncode:
        return {"rows": [], "failed": f"ended with status {done.returncode}: {last[:300]}"}
    try:
        # Libraries that print what they like have had their say before the last line.
        return {"rows": json.loads(done.stdout.splitlines()[-1]), "failed": ""}
    except (ValueError, IndexError):
        return {"rows": [], "failed": f"said what is no JSON: {last[:300]}"}


def markdown(told: Mapping[str, Any]) -> str:
    """gpu.md."""
    here, parts = told["machine"], told["parts"]
    lines = ["# On a GPU", ""]
    if told["dry_run"]:
        lines += ["**A dry run on the CPU: these are no figures of a GPU, and none of any use.**", ""]
    else:
        lines += ["<!-- Written by `make gpu`. Do not edit. -->", ""]
    lines += [
        f"{here['gpu']}, compute capability {here['compute_capability'] or '-'}, driver {here['driver'] or '-'}; "
        f"{here['cpu']}, {here['cores']} cores; {here['system']}; Python {here['python']}; {here['at']}. "
        + ", ".join(f"{k} {v}" for k, v in here["versions"].items())
        + f". Medians of {told['repeat']} runs.",
        "",
    ]
    for name, part in parts.items():
        lines += [f"## {TITLES[name]}", ""]
        if part["failed"]:
            lines += [f"**Not measured: it {part['failed']}**", ""]
        if part["rows"]:
            lines += [*_TABLES[name](part["rows"]), ""]
        elif not part["failed"]:
            lines += ["Nothing here.", ""]
    return "\n".join(lines).rstrip() + "\n"


TITLES = {
    "tensorrt": "Whether TensorRT runs here",
    "tensorrt_rtx": "Whether TensorRT for RTX runs here",
    "plans": "Plans",
    "parity": "Parity with ONNX Runtime in fp32 (at most 0.5 HU, 0.1 HU RMS)",
    "speed": "Milliseconds a slice: the full path (the network alone)",
    "kernels": "Our kernels alone, and with copies and host everything but the network, ms a slice",
    "memory": "Memory under a bound",
    "torch": "Networks under torch and CUDA graphs, fp16, channels last, ms a slice of 512 x 512",
}


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of Markdown."""
    head = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return [*head, *("| " + " | ".join(row) + " |" for row in rows)]


def _tried(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = [
        [r["flavour"], r["version"] or "-", "yes" if r["runs"] else "**no**", "yes" if r["known"] else "no",
         "; ".join(r["words"])]
        for r in rows
    ]  # fmt: skip
    return table(["", "version", "runs", "our table says so", ""], cells)


def _plans(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = [
        [r["engine"], r["precision"], r["flavour"], r["target"], r["state"], f"{r['size'] / 1e6:.1f}",
         f"{r['seconds']:.1f}", r["fault"]]
        for r in rows
    ]  # fmt: skip
    return table(["engine", "precision", "flavour", "for", "", "MB", "s", ""], cells)


def _parity(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    def verdict(r: Mapping[str, Any]) -> list[str]:
        if "refused" in r:
            return ["", "", "", r["refused"]]
        unit = "HU" if r["unit"] == "HU" else "of the scale"
        said = "ok" if r["ok"] and r["repeats"] else "**fails**" if not r["ok"] else "**two runs differ**"
        return [
            f"{r['largest']:.2g} {unit}",
            f"{r['rms']:.2g} {unit}",
            "same" if r["repeats"] else "differ",
            said,
        ]

    cells = [[r["engine"], r["runtime"], r["precision"] or "-", *verdict(r)] for r in rows]
    return table(["engine", "runtime", "precision", "largest", "RMS", "two runs", ""], cells)


def _speed(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = []
    for r in rows:
        if "refused" in r:
            cells.append(
                [r["engine"], r["runtime"], r["precision"] or "-", r["refused"], *[""] * len(BATCHES)]
            )
            continue
        pairs = [
            f"{r['whole_ms'][str(n)]:.2f} ({r['network_ms'][str(n)]:.2f})" if str(n) in r["whole_ms"] else ""
            for n in BATCHES
        ]
        cells.append([r["engine"], r["runtime"], r["precision"] or "-", str(r["side"]), *pairs])
    return table(["engine", "runtime", "precision", "side", *(f"slabs of {n}" for n in BATCHES)], cells)


def _kernels(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = [
        [
            r["what"],
            *(f"{r['ms'][n]:.3f} ({r['with_copies_ms'][n]:.3f})" if n in r["ms"] else "" for n in map(str, BATCHES)),
        ]
        for r in rows
    ]  # fmt: skip
    return table(["", *(f"slabs of {n}" for n in BATCHES)], cells)


def _memory(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = [
        [r["engine"], r["runtime"], r["precision"], f"{r['bound'] >> 20}",
         r.get("refused", f"{r.get('used', 0) >> 20}"), "ok" if r.get("ok") else "**fails**"]
        for r in rows
    ]  # fmt: skip
    return table(["engine", "runtime", "precision", "bound, MiB", "taken, MiB", ""], cells)


def _torch(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if "refused" in rows[0]:
        return [str(rows[0]["refused"])]
    head: list[str] = []
    if "tflops" in rows[0]:
        ceiling, *rows = rows
        how = "as told" if ceiling["told"] else "measured here, where not told"
        head = [f"Roofline: {ceiling['tflops']:.0f} TFLOP/s in fp16, {ceiling['gbs']:.0f} GB/s ({how}).", ""]
    cells = [
        [f"PU-{r['size'].upper()}", str(r["batch"]), f"{r['ms']:.3f}",
         "-" if r["roofline_ms"] is None else f"{r['roofline_ms']:.3f} (x {r['ms'] / r['roofline_ms']:.1f})"]
        for r in rows
    ]  # fmt: skip
    return [*head, *table(["network", "batch", "ms", "roofline (measured over it)"], cells)]


_TABLES = {
    "tensorrt": _tried, "tensorrt_rtx": _tried, "plans": _plans, "parity": _parity, "speed": _speed,
    "kernels": _kernels, "memory": _memory, "torch": _torch,
}  # fmt: skip


def sound(told: Mapping[str, Any]) -> bool:
    """Whether every part ran, every plan was built, and everything agrees with the reference and keeps its bound."""
    parts = told["parts"]
    needed = [*parts["parity"]["rows"], *parts["memory"]["rows"]]
    return (
        not any(p["failed"] for p in parts.values())
        and all(r["state"] != "failed" for r in parts["plans"]["rows"])
        and all(r.get("ok") and r.get("repeats", True) for r in needed if r.get("runtime") != "onnx_cuda")
    )


def main(given: Sequence[str] | None = None) -> int:
    """Measure; returns the exit status: 1 if something is not sound, 2 without a GPU."""
    asked = arguments(given)
    if asked.part:
        wanted = Asked(
            plans=asked.plans, engines=tuple(asked.engines), repeat=asked.repeat, dry=asked.dry_run,
            flops=asked.tflops * 1e12, bytes_s=asked.gbs * 1e9,
        )  # fmt: skip
        rows = list(PARTS[asked.part](wanted))
        sys.stdout.write(f"\n{json.dumps(rows)}\n")
        return 0
    if not asked.dry_run and not gpu.local():
        sys.stderr.write("there is no GPU here, or no driver: nothing was measured, nothing is written\n")
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.plans or Path(scratch) / "plans"
        parts = {}
        for part in PARTS:
            sys.stderr.write(f"{part} ...\n")
            parts[part] = run(part, asked, folder)
    told = {"machine": machine(), "dry_run": asked.dry_run, "repeat": asked.repeat, "parts": parts}
    out = asked.out or DOCS / "evaluation"
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(json.dumps(told, indent=2) + "\n")
    (out / "gpu.md").write_text(markdown(told))
    sys.stderr.write(f"written: {out}/gpu.md, {out}/gpu.json\n")
    return 0 if sound(told) else 1


if __name__ == "__main__":
    sys.exit(main())
