"""The page that a medical physicist asks for: noise, resolution, tasks, safety, and the verdict on every bar."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from training.report import physics_inserts as inserts
from training.report import physics_mr as mr
from training.report import physics_noise as noise
from training.report import physics_safety as safety
from training.report import physics_sr as sr
from training.report import physics_tasks as tasks
from training.report import physics_verdicts as verdicts
from training.report.physics_bench import Subject, subjects
from training.report.section import Context, Section

HOW = """All figures are of whole engines: survey, network, guards and checks, at each engine's default
strength and, beside it, at 1.0. Images are phantoms drawn from seeds that no training uses; values
are not rounded to stored integers. CT noise has the spectrum of a kernel (fc 0.15, 0.22 and 0.32
cycles per pixel: soft, standard, sharp); in drawn anatomy, under discs and lesions it went through
projections (training/simulate/dose.py), on slabs it was drawn in the image domain. Two centre
frequency ratios (CFR) stand beside each other: of the radial mean of AAPM TG-233, and of the
noise's power over the plane of frequencies, which weighs high frequencies more."""


def run(context: Context) -> Section:
    """Measure every learned engine and the tuned NLM of either modality."""
    figures: dict[str, Any] = {}
    parts = [HOW]
    judged: list[verdicts.Verdict] = []
    found = subjects(context.catalog, "CT", threads=context.threads)
    if found:
        text, told, judged = _ct(context, found)
        parts.append(text)
        figures["ct"] = told
    else:
        parts.append("There is no CT engine to measure.")
    for page in (mr.page(context), sr.page(context)):
        parts.append(page.text)
        figures |= page.figures
        judged += page.verdicts
    figures["verdicts"] = [asdict(v) for v in judged]
    head = "## Verdicts\n\nAt default strength.\n\n" + verdicts.text(judged) if judged else ""
    return Section(
        name="physics",
        title="Physics: noise, resolution, detectability, safety",
        text="\n\n".join([parts[0], head, *parts[1:]]),
        figures=figures,
    )


def _ct(context: Context, found: Sequence[Subject]) -> tuple[str, dict[str, Any], list[verdicts.Verdict]]:
    """All of CT: tables, figures, verdicts."""
    quick = context.quick
    grains: list[noise.Grain] = []
    structures: list[safety.Structure] = []
    behaviours: list[safety.Behaviour] = []
    shown: dict[str, noise.Run] = {}
    for case in noise.cases(quick):
        context.say(f"physics: CT, {case.ground}, {case.kernel}, {case.sigma:.0f} HU")
        for subject in found:
            run_of = noise.ran(subject, case)
            grains += noise.grains(subject, run_of)
            if not case.ground.startswith("drawn"):
                continue
            structures += safety.structure(subject, run_of)
            usual = (
                case.ground == "drawn abdomen" and case.kernel == "standard" and case.sigma == noise.SIGMA_HU
            )
            if usual:
                shown[subject.name] = run_of
                behaviours.append(safety.behaviour(subject, case.noisy[0], case.spacing_mm, case.sigma))
    noise.plot(list(shown.items()), context.image("physics-nps.png"))
    edges: list[inserts.Edge] = []
    lines: list[inserts.Line] = []
    slab = inserts.ct_slab(quick)
    for subject in found:
        context.say(f"physics: inserts, {subject.name}")
        for sigma in inserts.DOSES_HU[1:2] if quick else inserts.DOSES_HU:
            some, straight = inserts.edges(subject, slab, inserts.ct_noise(slab, sigma), sigma)
            edges += some
            lines += straight
    del slab
    seen: list[tasks.Seen] = []
    for ground in list(tasks.GROUNDS)[:1] if quick else tasks.GROUNDS:
        bench = tasks.bench(ground, quick)
        for subject in found:
            context.say(f"physics: discs, {ground}, {subject.name}")
            seen += tasks.detect(subject, bench, n_bootstrap=50 if quick else 300)
        del bench
    gc.collect()
    kept: list[tasks.Kept] = []
    spurious: list[tasks.Spurious] = []
    stacks = tasks.stacks(quick)
    for subject in found:
        context.say(f"physics: lesions, {subject.name}")
        some_kept, some_spurious = tasks.keep(subject, stacks)
        kept += some_kept
        spurious += some_spurious
    judged = []
    for subject in found:
        judged += _judged(subject, grains, edges, seen, kept, spurious, structures, behaviours)
    told = {
        "noise": [asdict(g) for g in grains],
        "inserts": [asdict(e) for e in edges],
        "linearity": [asdict(li) for li in lines],
        "discs": [asdict(s) for s in seen],
        "lesions": [asdict(k) for k in kept],
        "false_blobs": [asdict(s) for s in spurious],
        "structure": [asdict(s) for s in structures],
        "behaviour": [asdict(b) for b in behaviours],
    }
    return _text(grains, edges, lines, seen, kept, spurious, structures, behaviours), told, judged


def _judged(
    subject: Subject,
    grains: Sequence[noise.Grain],
    edges: Sequence[inserts.Edge],
    seen: Sequence[tasks.Seen],
    kept: Sequence[tasks.Kept],
    spurious: Sequence[tasks.Spurious],
    structures: Sequence[safety.Structure],
    behaviours: Sequence[safety.Behaviour],
) -> list[verdicts.Verdict]:
    def mine(rows: Sequence[Any]) -> list[Any]:
        return [r for r in rows if r.engine == subject.name and r.strength == subject.strength]

    lesions_kept, blobs, structure = mine(kept), mine(spurious), mine(structures)
    out = verdicts.ct(
        subject.name,
        mine(grains),
        mine(edges),
        mine(seen),
        lesions_kept,
        blobs,
        structure,
        mine(behaviours)[0],
    )
    if subject.engine.card.family == "gan":
        out += verdicts.never_invents(subject.name, lesions_kept, blobs, structure)
    return out


def _text(
    grains: Sequence[noise.Grain],
    edges: Sequence[inserts.Edge],
    lines: Sequence[inserts.Line],
    seen: Sequence[tasks.Seen],
    kept: Sequence[tasks.Kept],
    spurious: Sequence[tasks.Spurious],
    structures: Sequence[safety.Structure],
    behaviours: Sequence[safety.Behaviour],
) -> str:
    return "\n\n".join(
        [
            "## CT: noise",
            "Noise is the difference of two outputs of the same truth with different noise, over root 2.",
            "![Noise power spectra](images/physics-nps.png)",
            noise.text(grains),
            "## CT: resolution, bias and linearity",
            f"Inserts of {inserts.LEVEL_HU:.0f} HU plus contrast in a slab with texture, standard kernel. Below "
            f"{inserts.WEAK_HU:.0f} HU of contrast the output of the same noise without inserts is subtracted.",
            inserts.text(edges, lines),
            "## CT: low-contrast discs",
            f"Channelized Hotelling observer, six Laguerre-Gauss channels, noise of {tasks.SIGMA_HU:.0f} HU; 95 % "
            "intervals over realisations.",
            tasks.text_seen(seen),
            "## CT: lesions",
            f"Contrast after over before, noise of {tasks.SIGMA_HU:.0f} HU, slices of {tasks.LESION_SPACING[0]:g} mm; "
            "the bar of 0.9 is for 3 mm and a contrast of at least the noise. At default strength:",
            tasks.text_kept(kept),
            "At strength 1.0:",
            tasks.text_kept(kept, "full"),
            "Blobs that a matched filter takes for lesions in lesion-free noise, above "
            f"{tasks.BLOB_THRESHOLD:g} times the response to the input's noise:",
            tasks.text_spurious(spurious),
            "## CT: structure and safety",
            "Structure index: correlation of what was taken with the true structure (0 is noise, towards 1 edges were "
            "flattened). sFRC: patches that stop agreeing with the truth below a limit that 5 % of the input's miss.",
            safety.text(structures),
            safety.text_behaviour(behaviours, "HU"),
        ]
    )
