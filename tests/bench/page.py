"""docs/performance.md from docs/performance.json: ratios with their spreads, and which bars they meet."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from tests.bench import telling
from tests.bench.telling import ratios, spread

NAMES = {
    "luminode": "Luminode",
    "two": "Luminode, two receivers",
    "storescp": "DCMTK storescp +B",
    "forking": "DCMTK storescp +B --fork",
    "as_shipped": "DCMTK storescp +B as shipped",
    "orthanc": "Orthanc, default sync",
    "pynetdicom": "pynetdicom, tuned",
    "sink": "sink (the sender's own limit)",
    "durable": "sink that digests and syncs",
}
BARS: tuple[tuple[str, str, float, float], ...] = (
    ("ct300", "storescp", 0.55, 1.0),
    ("ct300", "pynetdicom", 3.0, 3.0),
    ("ct300", "orthanc", 2.0, 2.0),
    ("four", "forking", 0.75, 1.0),
    ("nagle", "as_shipped", 10.0, 10.0),
    ("each", "forking", 1.0, 1.0),
    ("each120", "forking", 1.0, 1.0),
)
"""Case, beside whom, the least ratio of Luminode's rate to its, and the aim."""

BUSY: float = 0.5
"""Load average a core over which a machine had other work: who syncs waits for a core after each, who does not
loses nothing."""

SENDER_BAR, IDLE_BAR = 0.8, 5.0

HEAD = """# Performance

Made by `make bench` from `performance.json`; nothing here was typed. Ratios of one run on one machine are the result:
every receiver in turn, round after round, on the same traffic; absolute rates mean little elsewhere. Luminode runs
with durability on: every 0000H after the file, its name and its database row were synced. DCMTK and pynetdicom sync
nothing. Ratios are medians over the rounds, with the smallest and the largest in brackets; a CPU figure is that of the
receiver's process and its children.
"""


def page(results: dict[str, Any]) -> str:
    """The page, in Markdown."""
    return "\n".join(_lines(results)) + "\n"


def _lines(results: dict[str, Any]) -> Iterator[str]:
    yield HEAD
    sections = results["sections"]
    for name, head in (("door", "Receiving"), ("associations", "Many small associations")):
        if name in sections:
            yield f"## {head}\n"
            yield _run(sections[name])
            for case in sections[name]["cases"].values():
                yield from _case(case)
            if "idle" in sections[name]:
                one = sections[name]["idle"]
                yield f"{one['n']} idle associations cost {one['percent']:.1f} % of a core.\n"
    if "sender" in sections:
        yield from _sender(sections["sender"])
    for name, head, write in telling.WHOLE:
        if name in sections:
            yield f"## {head}\n"
            yield _run(sections[name])
            yield from write(sections[name])
    yield "## Bars\n"
    yield "| what | measured | bar | | load at its start |"
    yield "|---|---|---|---|---|"
    yield from _bars(sections)


def busy(section: dict[str, Any]) -> bool:
    """Whether the machine had other work when a section was measured."""
    return bool(section["made"]["load"] > BUSY * section["made"]["cores"])


def _run(section: dict[str, Any]) -> str:
    made = section["made"]
    warning = (
        "**Measured beside other work**, which costs those most who sync, for they give up their core each time: "
        "of this section only CPU an instance and memory count.\n\n"
    )
    return (warning if busy(section) else "") + (
        f"{made['at']}, `{made['command']}`, commit {made['commit']}; {made['cores']} cores of {made['processor']}, "
        f"{made['memory_gb']:.0f} GB, {made['filesystem']}, Python {made['python']}; load average at its start "
        f"{made['load']:.1f}.\n"
    )


def _case(case: dict[str, Any]) -> Iterator[str]:
    found = case["receivers"]
    ours = found["luminode"]["rates"]
    yield f"### {case['told']}\n"
    yield f"{len(ours)} round{'s' if len(ours) > 1 else ''}.\n"
    yield "| receiver | instances/s | Luminode's rate to its | CPU ms an instance | peak MB |"
    yield "|---|---|---|---|---|"
    for name, one in found.items():
        ratio = "" if name == "luminode" else spread(ratios(ours, one["rates"]))
        yield (
            f"| {NAMES[name]} | {median(one['rates']):.0f} | {ratio} | {median(one['cpu_ms']):.2f} | "
            f"{one['peak_mb']:.0f} |"
        )
    yield ""


def _sender(section: dict[str, Any]) -> Iterator[str]:
    yield "## Sending\n"
    yield _run(section)
    yield (
        f"{section['n']} CT slices from Part 10 files, one association; storescu with TCP_NODELAY; both less what one "
        "file takes.\n"
    )
    yield "| to | Luminode instances/s | storescu instances/s | ratio |"
    yield "|---|---|---|---|"
    for name, rates in section["to"].items():
        yield (
            f"| {NAMES[name]} | {median(rates['luminode']):.0f} | {median(rates['storescu']):.0f} | "
            f"{spread(ratios(rates['luminode'], rates['storescu']))} |"
        )
    yield ""


def _bars(sections: dict[str, Any]) -> Iterator[str]:
    cases = {
        name: case
        for part in ("door", "associations")
        for name, case in sections.get(part, {}).get("cases", {}).items()
    }
    for name, beside, least, aim in BARS:
        found = cases.get(name, {}).get("receivers", {})
        if beside in found:
            ratio = median(ratios(found["luminode"]["rates"], found[beside]["rates"]))
            bar = f"at least {least:g} x" + (f", aim {aim:g} x" if aim > least else "")
            told = f"{cases[name]['told']}: to {NAMES[beside]}"
            yield _bar(told, f"{ratio:.2f} x", bar, ratio >= least, of=_part(sections, name))
    if "idle" in sections.get("associations", {}):
        one = sections["associations"]["idle"]
        told = f"{one['n']} idle associations"
        bar = f"under {IDLE_BAR:g} % of a core"
        yield _bar(told, f"{one['percent']:.1f} %", bar, one["percent"] < IDLE_BAR, of=None)
    for name, rates in sections.get("sender", {}).get("to", {}).items():
        ratio = median(ratios(rates["luminode"], rates["storescu"]))
        told = f"sending to {NAMES[name]}: to storescu"
        yield _bar(
            told, f"{ratio:.2f} x", f"at least {SENDER_BAR:g} x", ratio >= SENDER_BAR, of=sections["sender"]
        )
    for told, measured, bar, met, section in telling.bars(sections):
        yield _bar(told, measured, bar, met, of=section)


def _part(sections: dict[str, Any], case: str) -> dict[str, Any]:
    return next(s for s in sections.values() if case in s.get("cases", {}))


def _bar(told: str, measured: str, bar: str, met: bool, *, of: dict[str, Any] | None) -> str:
    """One row; a bar that was missed on a busy machine is neither met nor missed."""
    verdict = "met" if met else "open: busy machine" if of is not None and busy(of) else "**not met**"
    load = "" if of is None else f"{of['made']['load']:.1f} on {of['made']['cores']} cores"
    return f"| {told} | {measured} | {bar} | {verdict} | {load} |"
