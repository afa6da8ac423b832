"""Figure 2: what is left of a gain on a domain that was never seen, by leave-one-domain-out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from engines.base import Floats
from training.data import patches
from training.data.shards import Shard
from training.errors import DataError, TrainingError
from training.evaluate import classical
from training.evaluate.classical import FILTERS
from training.evaluate.conventions import BODY_HU, SOFT
from training.evaluate.generalisation import Score, generalisation, worst
from training.evaluate.metrics import FEWEST_PIXELS, psnr
from training.fit import BEST, finished
from training.recipe import load
from training.report import plots
from training.report.cases import plain, read_shards
from training.report.section import Context, Section
from training.report.tables import as_json, number, table, told

DOMAINS = ("chest", "abdomen", "head")
FAMILIES = ("cnn", "autoencoder", "gan")
CLASSICAL = "classical"
LEVELS = (8.0, 18.0, 40.0)
"""Noise of the test patches, HU."""
PATCH = 128
N_PATCHES = 4
"""Of each stack and level."""
N_TUNING = 3
"""Stacks of each kind that filters are tuned on."""
SEED = 4242

HOW = """
G(d) = mean gain on domain d of a model trained without d, over that of the same recipe trained with
every domain, both on d: stacks of the validation shards of kind d. 1: nothing is lost on anatomy that
was never seen; 0: useless; below 0: harmful. The gain is that of the PSNR in the soft tissue window, in
the body, on patches of 128 pixels at 8, 18 and 40 HU of correlated noise, without guards, at full
strength; the unit of averages and intervals is the stack. Domains are kinds of drawn anatomy, not
diseases: that is what can be held out honestly where all training data is synthetic. Networks are small
(recipes with-all-* and without-*), trained for few updates on a CPU: the ratio is what counts. The
classical row is tuned on stacks of the training shards: without d, and on d alone.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """One test patch: what a network is given, and what is measured."""

    stack: str
    x: Floats
    c: Floats
    noisy: Floats
    clean: Floats
    sigma: float

    @property
    def mask(self) -> Any:
        """bool (y, x): the body."""
        return self.clean > BODY_HU


Method = Callable[[Patch], Floats]
"""From a patch to its cleaned slice (y, x), HU."""


def test_patches(found: Sequence[Shard], n: int, seed: int) -> tuple[Patch, ...]:
    """Draw ``n`` patches of each stack and level, of those with a body in them."""
    out = []
    for i, shard in enumerate(found):
        for level in LEVELS:
            sample = patches.ct([shard], patches.Draw(size=PATCH, sigma=(level, level), told=0.0))
            rng = np.random.default_rng([SEED, seed, i, int(level)])
            for _ in range(n):
                e = sample(rng)
                noisy = e.x[1] * np.float32(1000)
                clean = noisy - e.target[0] * np.float32(100)
                if int((clean > BODY_HU).sum()) < FEWEST_PIXELS:
                    continue
                c = np.full((1, PATCH, PATCH), e.c, np.float32)
                out.append(Patch(stack=shard.name, x=e.x, c=c, noisy=noisy, clean=clean, sigma=level))
    return tuple(out)


def gains(method: Method, given: Sequence[Patch]) -> dict[str, float]:
    """Gain of the windowed PSNR in dB, mean over the patches of each stack."""
    by: dict[str, list[float]] = {}
    for p in given:
        a = SOFT.apply(p.clean)
        before, after = (psnr(a, SOFT.apply(v), mask=p.mask) for v in (p.noisy, method(p)))
        if np.isfinite(before) and np.isfinite(after):
            by.setdefault(p.stack, []).append(after - before)
    return {stack: float(np.mean(v)) for stack, v in by.items()}


def network_method(network: nn.Module) -> Method:
    """A network as a method."""

    def clean(p: Patch) -> Floats:
        with torch.no_grad():
            r = network(torch.from_numpy(p.x[None]), torch.from_numpy(p.c[None])).float().numpy()
        return np.asarray(p.noisy - np.float32(100) * r[0, 0], np.float32)

    return clean


def filter_method(name: str, parameters: Mapping[str, Any]) -> Method:
    """A classical row as a method."""

    def clean(p: Patch) -> Floats:
        sigma = np.array([p.sigma], np.float32)
        made: Floats = classical.apply(name, parameters, plain(p.noisy[None], (5.0, 0.7, 0.7), "HU"), sigma)[
            0
        ]
        return made

    return clean


def tuned(given: Sequence[Patch], names: Sequence[str]) -> tuple[str, Mapping[str, Any]]:
    """The filter and the parameters with the best windowed PSNR on patches."""
    stacks = [
        classical.Case(
            patient=p.stack,
            domain="",
            noisy=p.noisy[None],
            reference=p.clean[None],
            sigma=np.array([p.sigma], np.float32),
            mask=np.asarray(p.mask)[None],
            spacing_mm=(5.0, 0.7, 0.7),
        )
        for p in given
    ]

    def score(one: classical.Case, out: Floats) -> float:
        return psnr(SOFT.apply(one.reference[0]), SOFT.apply(out[0]), mask=one.mask[0])

    best = [(max(classical.trials(name, stacks, score), key=lambda t: t.score), name) for name in names]
    trial, name = max(best, key=lambda b: b[0].score)
    return name, trial.parameters


def network(name: str, runs: Path) -> nn.Module | None:
    """The best weights of a run, or None."""
    path = runs / name / BEST
    return finished(path, load(name)) if path.exists() else None


def _of_kind(found: Sequence[Shard], kind: str) -> list[Shard]:
    return [s for s in found if str(s.facts.get("kind", "")) == kind]


def run(context: Context) -> Section:
    """Score every family on every domain."""
    text = [" ".join(HOW.split()), ""]
    figures: dict[str, Any] = {}
    found = read_shards(context.data / "ct-validation")
    if not found:
        text.append("There are no validation shards: nothing is measured here.")
        return _section(text, figures)
    n = 1 if context.quick else N_PATCHES
    domains = DOMAINS[:1] if context.quick else DOMAINS
    given = {}
    for i, domain in enumerate(domains):
        shards = _of_kind(found, domain)[: 2 if context.quick else None]
        given[domain] = test_patches(shards, n, i)
    scores: dict[str, list[Score | None]] = {}
    for family in FAMILIES:
        context.say(f"generalisation: {family}")
        whole = _opened(f"with-all-{family}", context, text)
        scores[family] = []
        for domain in domains:
            part = _opened(f"without-{domain}-{family}", context, text)
            score = None
            if whole is not None and part is not None and given[domain]:
                score = _score(family, domain, network_method(part), network_method(whole), given[domain])
            scores[family].append(score)
    scores[CLASSICAL] = _classical(context, given, figures)
    text += _text(scores, domains, figures, context)
    return _section(text, figures)


def _section(text: Sequence[str], figures: dict[str, Any]) -> Section:
    return Section(
        name="generalisation", title="Figure 2: generalisation", text="\n".join(text), figures=figures
    )


def _opened(name: str, context: Context, text: list[str]) -> nn.Module | None:
    try:
        made = network(name, context.runs)
    except TrainingError as error:
        text.append(f"- {name} cannot be read: {error.message}.")
        return None
    if made is None:
        text.append(f"- {name} is not trained: `python -m training fit {name}`.")
    return made


def _score(family: str, domain: str, without: Method, with_: Method, given: Sequence[Patch]) -> Score | None:
    try:
        return generalisation(family, domain, gains(without, given), gains(with_, given))
    except DataError:
        return None


def _classical(
    context: Context, given: Mapping[str, Sequence[Patch]], figures: dict[str, Any]
) -> list[Score | None]:
    """The filters: tuned on the other domains against tuned on this one."""
    material = read_shards(context.data / "ct-truth")
    names = ("gaussian", "median") if context.quick else tuple(FILTERS)
    n = 1 if context.quick else N_TUNING
    pools = {
        d: test_patches(_of_kind(material, d)[:n], 1, 100 + i) for i, d in enumerate(DOMAINS) if material
    }
    out: list[Score | None] = []
    for domain in given:
        own = pools.get(domain, ())
        others = [p for d, pool in pools.items() if d != domain for p in pool]
        if not own or not others or not given[domain]:
            out.append(None)
            continue
        context.say(f"generalisation: classical, {domain}")
        seen, alone = tuned(others, names), tuned(own, names)
        figures[f"classical {domain} tuning"] = {
            "tuned_without": {"row": seen[0], **seen[1]},
            "tuned_on": {"row": alone[0], **alone[1]},
        }
        out.append(_score(CLASSICAL, domain, filter_method(*seen), filter_method(*alone), given[domain]))
    return out


def _text(
    scores: Mapping[str, Sequence[Score | None]],
    domains: Sequence[str],
    figures: dict[str, Any],
    context: Context,
) -> list[str]:
    made, text = [], [""]
    for family, of in scores.items():
        for domain, s in zip(domains, of, strict=True):
            if s is None:
                made.append([family, domain, "not measured", "-", "-", "-", "-"])
                continue
            made.append(
                [
                    family,
                    domain,
                    told(s.score) if s.score is not None else f"refused: {s.refused}",
                    told(s.gain_without, signed=True),
                    told(s.gain_with, signed=True),
                    f"{s.harm_rate:.0%}",
                    str(s.gain_without.n),
                ]
            )
            figures[f"{family} {domain}"] = {
                "score": as_json(s.score),
                "gain_without_db": as_json(s.gain_without),
                "gain_with_db": as_json(s.gain_with),
                "harm_rate": s.harm_rate,
                "refused": s.refused,
            }
    header = ["family", "domain", "G", "gain without it, dB", "gain with it, dB", "harmed", "stacks"]
    text += [table(header, made), ""]
    for family, of in scores.items():
        known = [s for s in of if s is not None and s.score is not None]
        if known:
            low = worst(known)
            assert low.score is not None
            text.append(f"- {family}: worst domain {low.domain}, G = {number(low.score.mean)}.")
            figures[f"{family} worst"] = {"domain": low.domain, "score": low.score.mean}
    shown = {f: [s.score if s else None for s in of] for f, of in scores.items() if any(of)}
    if shown:
        path = context.image("generalisation.png")
        plots.bars(
            path,
            [f"without {d}" for d in domains],
            shown,
            title="Generalisation: gain kept on a domain that was held out",
            label="G (1: as if it had been seen), 95 % interval over stacks",
        )
        text += ["", f"![Generalisation by family and domain](images/{path.name})"]
    else:
        text.append("No family could be scored.")
    return text
