"""The bars of the project for Table 1, judged by figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from training.evaluate.averaging import Estimate
from training.report.measures import CLASSICAL, INPUT, TRADITIONAL, Measured
from training.report.rows import Tuned
from training.report.tables import as_json, number, table, told, verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A figure to be reached: ``family``'s ``figure`` over ``against``, at least ``least``."""

    family: str
    figure: str
    against: str
    least: float


BARS = (
    Bar(family="cnn", figure="psnr_db", against=INPUT, least=3.0),
    Bar(family="cnn", figure="psnr_db", against=CLASSICAL, least=1.5),
    Bar(family="cnn", figure="psnr_db", against=TRADITIONAL, least=3.7),
    Bar(family="cnn", figure="ssim", against=TRADITIONAL, least=0.07),
    Bar(family="cnn", figure="ssim", against=INPUT, least=0.07),
    Bar(family="gan", figure="psnr_db", against=TRADITIONAL, least=5.2),
    Bar(family="gan", figure="ssim", against=TRADITIONAL, least=0.10),
    Bar(family="autoencoder", figure="psnr_db", against=TRADITIONAL, least=3.3),
    Bar(family="autoencoder", figure="ssim", against=TRADITIONAL, least=0.05),
)
"""Of the CT soft tissue window. Those of GAN and autoencoder, and of SSIM over the traditional row, are the paper's
own gains."""

SETS = {"quarter": "real, quarter dose", "truth": "phantoms"}


def measured_by(bar: Bar, found: Measured) -> Estimate | None:
    """The figure of a bar on one group of cases."""
    window = next(iter(found.found))
    if bar.family not in found.names():
        return None
    return found.gain(window, bar.against, bar.family, bar.figure).difference


def _names(bar: Bar) -> str:
    over = {INPUT: "the input", CLASSICAL: "the best tuned classical row", TRADITIONAL: "the paper-style row"}
    what, unit = ("PSNR", " dB") if bar.figure == "psnr_db" else ("SSIM", "")
    family = bar.family if bar.family == "autoencoder" else bar.family.upper()
    return f"{family}: {what} at least +{bar.least:g}{unit} over {over[bar.against]}"


def bars(
    groups: Mapping[str, Measured], tuned: Mapping[str, Tuned]
) -> tuple[list[str], list[dict[str, Any]]]:
    """Judge every bar on every group, and on the error to the truth where the reference is noisy."""
    made, figures = [], []
    for bar in BARS:
        digits = 2 if bar.figure == "psnr_db" else 3
        line = [_names(bar)]
        for name in SETS:
            found = groups.get(name)
            e = measured_by(bar, found) if found is not None else None
            met = None if e is None else e.mean >= bar.least
            line.append("not measured" if e is None else f"{told(e, digits, signed=True)} {verdict(met)}")
            figures.append({"bar": _names(bar), "on": name, "figure": as_json(e), "met": met})
            if name != "quarter":
                continue
            e = None
            if found is not None and bar.figure == "psnr_db" and bar.family in found.names():
                e = found.truth_gain(bar.against, bar.family)
            met = None if e is None else e.mean >= bar.least
            line.append("" if e is None else f"{told(e, digits, signed=True)} {verdict(met)}")
            figures.append(
                {"bar": _names(bar), "on": "quarter, to the truth", "figure": as_json(e), "met": met}
            )
        made.append(line)
    header = ["bar", SETS["quarter"], "the same, to the truth", SETS["truth"]]
    text = [
        "### Bars",
        "",
        "Soft tissue window; each engine at the strength that was best on validation.",
        "",
    ]
    text += [table(header, made), ""]
    limit = _room(groups)
    if limit:
        text += [limit, ""]
    strengths = [
        f"{SETS[name]}: {', '.join(f'{f} {number(r.strength, 2)}' for f, r in of.engines.items()) or 'no engine'}"
        for name, of in tuned.items()
        if name in SETS
    ]
    return [*text, f"Strengths: {'; '.join(strengths)}.", ""], figures


def _room(groups: Mapping[str, Measured]) -> str:
    """What is left to gain over the classical rows on real series, where 6.0 dB over the input is the most."""
    found = groups.get("quarter")
    if found is None:
        return ""
    window = next(iter(found.found))
    best = {k: found.gain(window, INPUT, k).difference.mean for k in (TRADITIONAL, CLASSICAL)}
    return (
        f"On real series the paper-style row gains {best[TRADITIONAL]:.2f} dB and the best classical row "
        f"{best[CLASSICAL]:.2f} dB over the input, of 6.0 dB that are possible against a noisy reference: "
        f"no method can be much more than {6.02 - best[TRADITIONAL]:.1f} and {6.02 - best[CLASSICAL]:.1f} dB "
        "above them."
    )
