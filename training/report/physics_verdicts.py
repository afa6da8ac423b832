"""The bars, each computed, per engine; nothing is rounded in an engine's favour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from training.evaluate import lesions, observer
from training.report.physics_acr import Detail
from training.report.physics_bench import table
from training.report.physics_inserts import HU_BAR_FROM, Edge
from training.report.physics_noise import Grain
from training.report.physics_safety import Behaviour, Structure
from training.report.physics_tasks import Kept, Seen, Spurious

REDUCTION = (0.40, 0.50)
LEAST_CFR = 0.90
TTF_WITHIN = 0.05
LARGEST_GAIN = 2.0
LARGEST_MEAN_HU = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One bar for one engine: what was measured, against what, and whether it holds."""

    engine: str
    bar: str
    measured: str
    holds: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Part of the physics page: its Markdown, its figures, and what it judges."""

    text: str
    figures: dict[str, Any]
    verdicts: list[Verdict]


Say = Callable[[str, str, bool], None]


def _grain(say: Say, reduced: Sequence[Grain], grains: Sequence[Grain], bar: str) -> None:
    """How much noise is taken (of ``reduced``), and what is left of its grain (of all)."""
    less = [1 - g.nmr for g in reduced]
    mean = sum(less) / len(less)
    say(
        bar,
        f"{100 * mean:.0f} % ({100 * min(less):.0f} to {100 * max(less):.0f} %)",
        REDUCTION[0] <= mean <= REDUCTION[1],
    )
    for name, values in (
        ("radial mean of TG-233", [g.cfr for g in grains]),
        ("mean of the power in the plane", [g.plane_cfr for g in grains]),
    ):
        say(
            f"CFR at least {LEAST_CFR:.2f} in every case, {name}",
            f"{min(values):.3f} to {max(values):.3f}, {sum(v >= LEAST_CFR for v in values)} of {len(values)} cases",
            min(values) >= LEAST_CFR,
        )


def ct(
    engine: str,
    grains: Sequence[Grain],
    edges: Sequence[Edge],
    seen: Sequence[Seen],
    kept: Sequence[Kept],
    spurious: Sequence[Spurious],
    structures: Sequence[Structure],
    behaviour: Behaviour,
) -> list[Verdict]:
    """Judge one CT engine at the strength that its figures have; give figures of default strength only."""
    out = []

    def say(bar: str, measured: str, holds: bool) -> None:
        out.append(Verdict(engine=engine, bar=bar, measured=measured, holds=holds))

    anatomy = [g for g in grains if g.ground.startswith("drawn")]
    _grain(say, anatomy, grains, "noise 40 to 50 % less in anatomy (mean over anatomy, kernels and doses)")
    for sigma in sorted({e.sigma for e in edges}):
        ratios = [e.f50_ratio for e in edges if abs(e.contrast) >= HU_BAR_FROM and e.sigma == sigma]
        say(
            f"TTF50 within {100 * TTF_WITHIN:.0f} % for inserts of {HU_BAR_FROM:.0f} HU and more, {sigma:.0f} HU noise",
            f"{min(ratios):.3f} to {max(ratios):.3f}",
            all(abs(r - 1) <= TTF_WITHIN for r in ratios),
        )
    bias = max(abs(e.bias) for e in edges)
    say("bias of every insert below 1 HU", f"{bias:.2f} HU", bias < LARGEST_MEAN_HU)
    region = max(s.largest_region_change for s in structures)
    say("mean of every 32 mm region changes by less than 1 HU", f"{region:.2f} HU", region < LARGEST_MEAN_HU)
    part = max(s.largest_body_change for s in structures)
    say("the same of the body's part of every region", f"{part:.2f} HU", part < LARGEST_MEAN_HU)
    worst = min(seen, key=lambda s: s.change[0])
    say(
        f"AUC of no disc lower by more than {observer.LARGEST_AUC_LOSS:g}",
        f"worst {worst.change[0]:+.3f} [{worst.change[1]:+.3f}, {worst.change[2]:+.3f}] "
        f"({worst.contrast:g} HU, {worst.diameter_mm:g} mm, {worst.ground})",
        worst.change[0] >= -observer.LARGEST_AUC_LOSS,
    )
    judged = [k for k in kept if k.cnr >= 1 and k.diameter_mm >= 3]
    weak = min(judged, key=lambda k: k.retention)
    say(
        f"lesions of 3 mm and CNR 1 and more keep {lesions.LEAST_RETENTION:g} of their contrast",
        f"{weak.retention:.2f} at {weak.contrast:+.0f} HU, {weak.diameter_mm:g} mm; "
        f"{sum(k.retention >= lesions.LEAST_RETENTION for k in judged)} of {len(judged)} kinds",
        weak.retention >= lesions.LEAST_RETENTION,
    )
    before, after = sum(s.before for s in spurious), sum(s.after for s in spurious)
    say(
        "no more false blobs than the input has",
        f"{before} before, {after} after",
        all(s.after <= s.before for s in spurious),
    )
    flagged = (sum(s.flagged_before for s in structures), sum(s.flagged_after for s in structures))
    say(
        "no more patches flagged by sFRC than the input's own",
        f"{flagged[0]} before, {flagged[1]} after",
        flagged[1] <= flagged[0],
    )
    say(
        f"local gain at most {LARGEST_GAIN:g}",
        f"{behaviour.gain_largest:.2f}",
        behaviour.gain_largest <= LARGEST_GAIN,
    )
    return out


def never_invents(
    engine: str, kept: Sequence[Kept], spurious: Sequence[Spurious], structures: Sequence[Structure]
) -> list[Verdict]:
    """Judge the sentence on the adversarial engine: it must never lower a lesion's contrast or invent one."""
    judged = [k for k in kept if k.cnr >= 1 and k.diameter_mm >= 3]
    lowered = [k for k in judged if k.retention < lesions.LEAST_RETENTION]
    more = [s for s in spurious if s.after > s.before]
    flagged = [s for s in structures if s.flagged_after > s.flagged_before]
    lowest = min(k.retention for k in judged)
    return [
        Verdict(
            engine=engine,
            bar="never lowers a lesion's contrast (3 mm and CNR 1 and more, 0.9 kept)",
            measured=f"{len(lowered)} of {len(judged)} kinds lowered, lowest {lowest:.2f}",
            holds=not lowered,
        ),
        Verdict(
            engine=engine,
            bar="never invents one (matched filter, and sFRC case by case)",
            measured=f"{len(more)} of {len(spurious)} filters and {len(flagged)} of {len(structures)} cases "
            "have more than the input",
            holds=not more and not flagged,
        ),
    ]


def mr(
    engine: str,
    grains: Sequence[Grain],
    edges: Sequence[Edge],
    kept: Sequence[Kept],
    spurious: Sequence[Spurious],
    details: Sequence[Detail],
    behaviour: Behaviour,
) -> list[Verdict]:
    """Judge one MR engine; give figures of default strength only."""
    out = []

    def say(bar: str, measured: str, holds: bool) -> None:
        out.append(Verdict(engine=engine, bar=bar, measured=measured, holds=holds))

    _grain(say, grains, grains, "noise 40 to 50 % less (mean over heads, zero filling and doses)")
    for sigma in sorted({e.sigma for e in edges}):
        ratios = [e.f50_ratio for e in edges if e.sigma == sigma]
        say(
            f"TTF50 within {100 * TTF_WITHIN:.0f} % for strong inserts, noise {sigma:.0f} units",
            f"{min(ratios):.3f} to {max(ratios):.3f}",
            all(abs(r - 1) <= TTF_WITHIN for r in ratios),
        )
    judged = [k for k in kept if k.cnr >= 1 and k.diameter_mm >= 3]
    weak = min(judged, key=lambda k: k.retention)
    say(
        f"lesions of 3 mm and CNR 1 and more keep {lesions.LEAST_RETENTION:g} of their contrast",
        f"{weak.retention:.2f} at {weak.contrast:+.0f} units, {weak.diameter_mm:g} mm; "
        f"{sum(k.retention >= lesions.LEAST_RETENTION for k in judged)} of {len(judged)} kinds",
        weak.retention >= lesions.LEAST_RETENTION,
    )
    say(
        "no more false blobs than the input has",
        f"{sum(s.before for s in spurious)} before, {sum(s.after for s in spurious)} after",
        all(s.after <= s.before for s in spurious),
    )
    if details:
        lost, new = sum(d.lost for d in details), sum(d.appeared for d in details)
        say(
            "ACR: discs that are visible before are visible after, and no others",
            f"{lost} of {sum(d.discs for d in details)} lost, {new} appeared; contrast left "
            f"{min(d.contrast for d in details):.3f}",
            lost == 0 and new == 0,
        )
        least = min(d.detail for d in details)
        say("ACR resolution insert keeps 0.95 of its detail", f"{least:.3f}", least >= 0.95)
    say(
        f"local gain at most {LARGEST_GAIN:g}",
        f"{behaviour.gain_largest:.2f}",
        behaviour.gain_largest <= LARGEST_GAIN,
    )
    return out


def text(found: Sequence[Verdict]) -> str:
    """Write verdicts."""
    return table(
        ("engine", "bar", "measured", "holds"), [(v.engine, v.bar, v.measured, v.holds) for v in found]
    )
