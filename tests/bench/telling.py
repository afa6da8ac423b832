"""The page's sections about a whole node: turnaround, memory, four series at once, engines, archives, profiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

Section = dict[str, Any]

ARCHIVE_BAR, NOTICED_MS = 1.5, 2.0
DATABASES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
MEMORY_BAR_MB, FOUR_BAR, ENGINE_BAR, TURNAROUND_BAR_S, FLOOR_BAR, FIT_BAR = 1500.0, 0.9, 0.85, 3.0, 1.5, 0.99
WAYS = {
    "early": "Luminode as shipped",
    "identity": "Luminode, an engine that does nothing (`identity`)",
    "late": "Luminode with `begin_early: false`",
}
STEPS = (
    ("close", "the series is known to be complete (0.3 s of it is the settling time of this run)"),
    ("route", "the rules are asked, the job is queued"),
    ("claim", "a worker takes the job"),
    ("make", "slices that were not made while the series came are decoded, measured and enhanced"),
    ("derive", "derived instances are written, synced and recorded"),
    ("deliver", "they are sent to the PACS"),
)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def spread(values: Sequence[float]) -> str:
    """Median, smallest and largest."""
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def turnaround(section: Section) -> Iterator[str]:
    """From the last slice to the PACS."""
    runs = section["runs"]
    yield (
        f"{section['n']} CT slices of {section['size']} x {section['size']}, {section['pace']:.0f} a second as a "
        f"scanner sends them, `{section['engine']}`, a DCMTK storescp as PACS. Seconds from the answer to the last "
        "slice to the last derived slice in the PACS: median, smallest and largest. What cannot overlap with the "
        "scan is what the engine that does nothing takes: all its pixels are ready at once, and what is left is to "
        "know that the series is complete, to write the derived slices and to send them.\n"
    )
    yield "| who | runs | seconds |"
    yield "|---|---|---|"
    for name, told in WAYS.items():
        yield f"| {told} | {len(runs[name])} | {spread([one['total'] for one in runs[name]])} |"
    for age, seconds in section["orthanc"].items():
        if seconds:
            told = f"Orthanc with its Python plugin (3 x 3 mean), StableAge {age}"
            yield f"| {told} | {len(seconds)} | {spread(seconds)} |"
    yield ""
    if section["absent"]:
        yield f"Orthanc with its Python plugin was not measured: {section['absent']}.\n"
    before = median(one["made_before"] for one in runs["early"])
    yield (
        f"Where the time goes, medians in seconds; as shipped {before:.0f} of {section['n']} slices were made while "
        "the series came.\n"
    )
    yield "| step | as shipped | `identity` | `begin_early: false` |"
    yield "|---|---|---|---|"
    for step, told in STEPS:
        cells = " | ".join(f"{median(one[step] for one in runs[name]):.2f}" for name in WAYS)
        yield f"| {told} | {cells} |"
    yield ""


def memory(section: Section) -> Iterator[str]:
    """Memory, and time for each slice."""
    yield (
        f"CT series of {section['size']} x {section['size']}, `{section['engine']}`, sent as fast as they are taken, "
        "one after another to one node. Peak memory of all of its processes together: RSS counts a shared library in "
        "each process, PSS once. Seconds from the answer to the last slice to the last derived one in the PACS.\n"
    )
    yield "| slices | receive s | enhance and deliver s | ms a slice | peak MB RSS | PSS |"
    yield "|---|---|---|---|---|---|"
    for one in section["runs"]:
        rss, pss, _ = (value / 1e6 for value in one["peak"]["all"])
        yield (
            f"| {one['n']:,} | {one['receive']:.1f} | {one['seconds']:.1f} | {1000 * one['seconds'] / one['n']:.1f} | "
            f"{rss:.0f} | {pss:.0f} |"
        )
    fit, last = section["fit"], section["runs"][-1]
    yield (
        f"\nStraight line: {fit['start']:.2f} s + {1000 * fit['slope']:.2f} ms a slice, R2 = {fit['r2']:.4f}; farthest "
        f"from it: {fit['worst_s']:+.2f} s at {fit['worst_n']:.0f} slices.\n"
    )
    yield f"Of {last['n']:,} slices, each process's own peak:\n"
    yield "| process | peak MB RSS | PSS |"
    yield "|---|---|---|"
    for role, (rss, pss, _) in sorted(last["peak"].items(), key=lambda one: -one[1][0]):
        yield f"| {role} | {rss / 1e6:.0f} | {pss / 1e6:.0f} |"
    yield ""


def four(section: Section) -> Iterator[str]:
    """Series at once."""
    rates = section["rates"]
    yield (
        f"{section['series']} CT series of {section['n']} slices, `{section['engine']}`: over as many associations at "
        "once, and one after another (the next is sent when the one before is in the PACS).\n"
    )
    yield "| runs | at once, slices/s | one after another | at once to one after another |"
    yield "|---|---|---|---|"
    yield (
        f"| {len(rates['at_once'])} | {spread(rates['at_once'])} | {spread(rates['in_turn'])} | "
        f"{spread(ratios(rates['at_once'], rates['in_turn']))} |\n"
    )


def engine(section: Section) -> Iterator[str]:
    """Engines beside ONNX Runtime alone."""
    yield (
        "The worker's whole way (check the file's digest, decode, measure, network, guards, judge, encode; nothing is "
        "written) beside ONNX Runtime alone, on the very tensors that the network was given on that way and from as "
        "many threads, in turn. And the front door (measure, network, guards) on one stack in memory beside its "
        "network, slice by slice.\n"
    )
    yield "| engine | worker slices/s | ONNX Runtime alone | ratio | front door ms a slice | network ms a slice |"
    yield "|---|---|---|---|---|---|"
    for name, one in section["engines"].items():
        yield (
            f"| {name}, {one['modality']} {one['rows']} x {one['rows']}, {one['threads']} threads | "
            f"{median(one['worker']):.1f} | {median(one['alone']):.1f} | "
            f"{spread(ratios(one['worker'], one['alone']))} | {median(one['whole_ms']):.1f} | "
            f"{median(one['core_ms']):.1f} |"
        )
    yield ""


def archive(section: Section) -> Iterator[str]:
    """Pages and rounds in a small archive and in a large one."""
    (few, small), (many, large) = section["sizes"]["small"], section["sizes"]["large"]
    kinds = section["databases"]
    filled = ", ".join(f"{DATABASES[kind]} {one['fill_s']['large']:.0f} s" for kind, one in kinds.items())
    yield (
        f"Milliseconds, medians, in turn in a store of {small:,} instances in {few:,} series and in one of {large:,} "
        f"in {many:,} (seeded, filled in bulk: {filled}). Both have as many series a day, as many instances a series "
        f"and as much that waits. Lists are of {section['rows']} rows. A verb is timed without the start of Python, "
        "with its store open. SQLite is durable; PostgreSQL is that of the tests, which syncs nothing.\n"
    )
    if section["absent"]:
        yield f"PostgreSQL was not measured: {section['absent']}.\n"
    yield "| what |" + "".join(f" {DATABASES[kind]}: small | large | ratio |" for kind in kinds)
    yield "|---|" + "---|---|---|" * len(kinds)
    for part in ("looks", "record"):
        for what in next(iter(kinds.values()))[part]:
            cells = ""
            for one in kinds.values():
                a, b = (median(one[part][what][size]) for size in ("small", "large"))
                cells += f" {a:.1f} | {b:.1f} | {b / a:.2f} |"
            yield f"| {what} |{cells}"
    yield ""


def slower(one: dict[str, list[float]]) -> bool:
    """Whether something takes noticeably longer in the large archive."""
    small, large = median(one["small"]), median(one["large"])
    return large > ARCHIVE_BAR * small and large > small + NOTICED_MS


def profile(section: Section) -> Iterator[str]:
    """Where the time goes."""
    yield (
        "Shares of CPU by Python function, all threads, sampled (`tests/bench/sampled.py`); what a library in C does "
        "is booked on the function that called it. The loading of modules is left out.\n"
    )
    for name, told in (
        ("receive", f"The receiver, {section['n']} CT slices"),
        ("job", f"`luminode enhance`, {section['n']} CT slices, `{section['engine']}`"),
    ):
        yield f"{told}: {section[name]['seconds']:.2f} s of CPU.\n"
        yield "| share | thread | function |"
        yield "|---|---|---|"
        for thread, function, share in section[name]["rows"]:
            yield f"| {100 * share:.0f} % | {thread} | `{function}` |"
        yield ""


def bars(sections: dict[str, Section]) -> Iterator[tuple[str, str, str, bool, Section]]:
    """What was measured, the figure, the bar, whether it is met, and the section."""
    if "turnaround" in sections:
        section = sections["turnaround"]
        early = [one["total"] for one in section["runs"]["early"]]
        floor = [one["total"] for one in section["runs"]["identity"]]
        total, ratio = median(early), median(ratios(early, floor))
        yield (
            "last slice to PACS",
            f"{total:.1f} s",
            f"at most {TURNAROUND_BAR_S:g} s",
            total <= TURNAROUND_BAR_S,
            section,
        )
        told = "last slice to PACS: to what cannot overlap"
        yield told, f"{ratio:.2f} x", f"at most {FLOOR_BAR:g} x", ratio <= FLOOR_BAR, section
    if "memory" in sections:
        section = sections["memory"]
        peak, fit = max(one["peak"]["all"][0] for one in section["runs"]) / 1e6, section["fit"]["r2"]
        told = f"memory of all processes, up to {section['runs'][-1]['n']:,} slices"
        yield told, f"{peak:.0f} MB", f"under {MEMORY_BAR_MB:.0f} MB", peak < MEMORY_BAR_MB, section
        yield "time is linear in slices: R2", f"{fit:.4f}", f"at least {FIT_BAR:g}", fit >= FIT_BAR, section
    if "four" in sections:
        section = sections["four"]
        ratio = median(ratios(section["rates"]["at_once"], section["rates"]["in_turn"]))
        told = f"{section['series']} series at once: to one after another"
        yield told, f"{ratio:.2f} x", f"at least {FOUR_BAR:g} x", ratio >= FOUR_BAR, section
    for name, one in sections.get("engine", {}).get("engines", {}).items():
        ratio = median(ratios(one["worker"], one["alone"]))
        told = f"{name}, the worker's whole way: to ONNX Runtime alone"
        yield told, f"{ratio:.2f} x", f"at least {ENGINE_BAR:g} x", ratio >= ENGINE_BAR, sections["engine"]
    for kind, one in sections.get("archive", {}).get("databases", {}).items():
        found = [what for part in ("looks", "record") for what, took in one[part].items() if slower(took)]
        n = len(one["looks"]) + len(one["record"])
        told = f"{DATABASES[kind]}, {sections['archive']['sizes']['large'][1]:,} instances: what is slower"
        bar = f"none by over {ARCHIVE_BAR:g} x and {NOTICED_MS:g} ms"
        yield told, f"{len(found)} of {n}", bar, not found, sections["archive"]


WHOLE = (
    ("turnaround", "From the last slice to the PACS", turnaround),
    ("memory", "Long series", memory),
    ("four", "Several series at once", four),
    ("engine", "Engines beside ONNX Runtime alone", engine),
    ("archive", "A large archive", archive),
    ("profile", "Where the time goes", profile),
)
