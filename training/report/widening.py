"""Whether generated material helped: the trainings with and without it, if they were made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from training.report.section import Context, Section

TITLE = "Widening a data set by what was generated"

ASIDE = """\
The paper says that GANs also generate images to widen a data set. A generator holds nothing that its training
set did not hold, so this is a claim to test: the same recipe was trained with and without the generated shards,
with equal updates from equal seeds, and judged on validation shards that hold nothing that was generated."""

HEAD = (
    "| made by | shards made / of truth | recipe, updates | gain without, dB | gain with, dB "
    "| difference, dB (95 % over shards) | p | by seed, dB |"
)


def run(context: Context) -> Section:
    """Show the comparisons that ``python -m training generate --compare`` left in the folder of runs."""
    found = []
    for path in sorted((context.runs / "widening").glob("*.json")):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            context.say(f"report: {path.name} cannot be read and is left out")
    if not found:
        text = f"{ASIDE}\n\nThe comparison was not made here: `python -m training generate --compare RECIPE` makes it."
        return Section(name="widening", title=TITLE, text=text, figures={"made": False})
    text = "\n\n".join([ASIDE, _table(found), *(_words(f) for f in found)])
    return Section(name="widening", title=TITLE, text=text, figures={"made": True, "comparisons": found})


def _table(found: list[Mapping[str, Any]]) -> str:
    lines = [
        HEAD,
        "|---|---|---|---|---|---|---|---|",
    ]
    for f in found:
        d = f["difference_db"]
        seeds = ", ".join(f"{v:+.2f}" for v in f["by_seed"])
        lines.append(
            f"| {' and '.join(f['using'])} | {f['n_generated']} / {f['n_truth']} | {f['recipe']}, {f['updates']} "
            f"| {f['gain_db']['without']['mean']:.2f} | {f['gain_db']['with']['mean']:.2f} "
            f"| {d['mean']:+.2f} ({d['low']:+.2f} to {d['high']:+.2f}) | {d['p']:.2g} | {seeds} |"
        )
    card = (
        f"Gain: error power before over after on fixed patches of {found[0]['n_validation']} validation shards, at "
        "three noise levels, in dB; at full strength, without guards; mean per shard, then over shards. The interval "
        "tells nothing of how far two trainings from other seeds lie apart: that is what the last column is for."
    )
    return "\n".join(lines) + f"\n\n{card}"


def _words(f: Mapping[str, Any]) -> str:
    d, how = f["difference_db"], " and ".join(f["using"])
    if f["helped"]:
        said = "it helped: the interval lies above zero, and every seed agrees"
    elif d["high"] < 0 and max(f["by_seed"]) < 0:
        said = "it did harm: the interval lies below zero, and every seed agrees"
    else:
        said = "no effect was shown: the interval holds zero, or the seeds disagree"
    kinds = ", ".join(f"{kind or 'all'} {value:+.2f}" for kind, value in f["by_kind"].items())
    return f"Widened by {how} ({f['generated']}): {said}. By kind, dB: {kinds}."
