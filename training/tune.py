"""``python -m training tune``: the best values of a recipe on validation shards (Optuna: TPE, successive halving).

A trial trains a copy of the recipe and is judged on fixed patches of the recipe's own validation shards, whatever
the copy changes: gain, less what a shift of the mean and a changed grain cost. No function here takes a test set.
Sources: Bergstra et al. 2011 (TPE), Li et al. 2020 (ASHA).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from training import feed, typed
from training.data.patches import Batch
from training.errors import Diverged, RecipeError, TrainingError
from training.evaluate import metrics, physics
from training.fit import BEST, LAST, Fit, Place, gain
from training.recipe import Recipe
from training.space import Penalty, Space, changed, value_of

Say = Callable[[str], None]

RUNGS = (0.125, 0.25, 0.5, 1.0)
"""Shares of the updates after which a trial is judged, and may be stopped."""

REDUCTION = 2
N_PATCHES = 16
STRENGTH = 0.6
"""Of engines that say nothing else: how the grain is judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How a network does on validation patches.

    Attributes
    ----------
    gain
        dB, mean over noise levels.
    bias
        Largest |mean error| of a level, as a share of its noise.
    cfr
        Centre frequency of the noise left at default strength over that of the noise; 1 for detail.
    score
        Gain less penalties, dB.
    """

    gain: float
    bias: float
    cfr: float
    score: float


@torch.no_grad()
def judge(
    network: nn.Module, checks: Sequence[tuple[float, Batch]], recipe: Recipe, penalty: Penalty
) -> Figures:
    """Measure a network on batches of :func:`training.feed.validation`."""
    network.eval()
    device = next(network.parameters()).device
    strength = recipe.engine.default_strength if recipe.engine is not None else STRENGTH
    gains, biases, ratios = [], [], []
    for _, b in checks:
        x, c, target, sigma = (torch.from_numpy(a).to(device) for a in (b.x, b.c, b.target, b.sigma))
        gains.append(gain(network, x, c, target, sigma))
        r = np.asarray(network(x, c).float().cpu().numpy(), np.float64)
        biases.append(abs(metrics.bias(b.target / b.sigma, r / b.sigma)))
        if recipe.scale == 1:
            ratios.append(_centre(b.target - strength * r) / _centre(b.target))
    cfr = float(np.mean(ratios)) if ratios else 1.0
    mean, worst = float(np.mean(gains)), float(max(biases))
    cost = penalty.bias * worst + penalty.cfr * abs(1 - cfr)
    return Figures(gain=mean, bias=worst, cfr=cfr, score=mean - cost)


def _centre(noise: Any) -> float:
    """Mean frequency of noise (N, 1, P, P) over the whole plane, cycles per pixel."""
    return physics.noise_power(np.asarray(noise, np.float64)[:, 0], 1.0).plane_frequency


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What came of it: the recipe (its name ends in ``-tuned``), where it lies, and every trial."""

    recipe: Recipe
    path: Path
    trials: Sequence[Mapping[str, Any]]


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise TrainingError(
            "tuning needs optuna, which is not installed", hint="pip install 'luminode[training]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _study(optuna: Any, recipe: Recipe, space: Space, out: Path) -> Any:
    """Open or begin the study; trials that were running when it was killed count as failed."""
    out.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=recipe.name,
        storage=f"sqlite:///{out / 'tune.db'}",
        load_if_exists=True,
        direction="maximize",
        pruner=optuna.pruners.SuccessiveHalvingPruner(
            min_resource=1, reduction_factor=REDUCTION, min_early_stopping_rate=0
        ),
    )
    asked = {"recipe": recipe.digest, "space": space.digest}
    told = {k: study.user_attrs.get(k, v) for k, v in asked.items()}
    if told != asked:
        raise RecipeError(
            f"{recipe.name}: tune.db is of another recipe or space",
            hint="give the changed recipe a name of its own, or remove tune.db",
        )
    for key, value in asked.items():
        study.set_user_attr(key, value)
    for trial in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    # Each run goes on with draws of its own: the same seed again would suggest the first trials once more.
    study.sampler = optuna.samplers.TPESampler(seed=recipe.seed + len(study.trials), n_startup_trials=5)
    return study


def _suggested(trial: Any, space: Space) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, choice in space.keys.items():
        if choice.choices is not None:
            values[key] = trial.suggest_categorical(key, choice.choices)
        elif choice.range is not None:
            low, high = choice.range
            if choice.whole:
                values[key] = trial.suggest_int(key, int(low), int(high), log=choice.log)
            else:
                values[key] = trial.suggest_float(key, low, high, log=choice.log)
    return values


def tune(
    recipe: Recipe,
    space: Space,
    data: Path,
    runs: Path,
    *,
    n_trials: int,
    say: Say = lambda _: None,
) -> Tuned:
    """Search until ``n_trials`` trials are done, those of earlier runs among them.

    The first trial is the recipe as it is, where the space holds it, so that what is found is never worse on the
    validation patches.

    Parameters
    ----------
    space
        From :func:`training.space.load`.
    data, runs
        As for :class:`training.fit.Fit`; ``runs/NAME`` gets ``tune.db`` (a run that was killed goes on),
        ``tune.json``, ``tune.md`` and ``NAME-tuned.yaml``.

    Raises
    ------
    RecipeError
        The database is of another recipe or space.
    TrainingError
        Optuna is missing, or no trial came to its end.
    """
    optuna = _optuna()
    out = runs / recipe.name
    study = _study(optuna, recipe, space, out)
    held = {key: value_of(recipe, key) for key in space.keys}
    if not study.trials and all(space.keys[k].holds(v) for k, v in held.items()):
        study.enqueue_trial(held)
    checks = feed.validation(recipe, data, N_PATCHES)
    done = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    while len(study.get_trials(deepcopy=False, states=done)) < n_trials:
        trial = study.ask()
        copy = changed(recipe, _suggested(trial, space))
        place = out / "trials" / f"{trial.number:04d}"
        try:
            figures, pruned = _trial(trial, copy, data, runs, place, checks, space.penalty)
        except Diverged as e:  # values too bold are worth nothing, and no reason to end the search
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            say(f"trial {trial.number}: {e.message}")
            _swept(place)
            continue
        trial.set_user_attr("figures", asdict(figures))
        if pruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, figures.score)
        say(f"trial {trial.number}: {_told(figures)}{', stopped early' if pruned else ''}")
    return _written(optuna, study, recipe, space, out)


def _trial(
    trial: Any,
    recipe: Recipe,
    data: Path,
    runs: Path,
    out: Path,
    checks: Sequence[tuple[float, Batch]],
    penalty: Penalty,
) -> tuple[Figures, bool]:
    """Train in rungs, judged after each; tells whether it was stopped before the last."""
    alone = Place(rank=0, world=1, device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    fit = Fit(recipe, data, out, runs, alone)
    figures = Figures(gain=0.0, bias=0.0, cfr=1.0, score=-np.inf)
    pruned = False
    for rung, share in enumerate(RUNGS, start=1):
        fit.run(stop_after=max(0, round(share * recipe.optim.updates) - fit.progress.step))
        figures = judge(fit.mean, checks, recipe, penalty)
        trial.report(figures.score, rung)
        pruned = rung < len(RUNGS) and bool(trial.should_prune())
        if pruned:
            break
    _swept(out)
    return figures, pruned


def _swept(out: Path) -> None:
    """Without checkpoints: what was found is its values; the tuned recipe is trained anew."""
    for name in (LAST, BEST):
        (out / name).unlink(missing_ok=True)


def _told(figures: Figures) -> str:
    f = figures
    return f"score {f.score:.2f} dB, gain {f.gain:.2f} dB, bias {100 * f.bias:.1f} % of the noise, CFR {f.cfr:.3f}"


def _written(optuna: Any, study: Any, recipe: Recipe, space: Space, out: Path) -> Tuned:
    complete = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    if not complete:
        raise TrainingError(f"{recipe.name}: no trial came to its end", hint="ask for more trials")
    best = max(complete, key=lambda t: t.value)
    name = f"{recipe.name}-tuned"
    found = changed(recipe, best.params, name=name)
    path = out / f"{name}.yaml"
    head = (
        f"Trial {best.number} of the tuning of {recipe.name}: {_told(Figures(**best.user_attrs['figures']))}."
    )
    typed.write(found.model_dump(mode="json", exclude_none=True), path, head)
    rows = [
        {
            "trial": t.number,
            "state": t.state.name.lower(),
            "values": dict(t.params),
            **t.user_attrs.get("figures", {}),
        }
        for t in study.get_trials(deepcopy=False)
    ]
    told = {
        "recipe": recipe.digest,
        "space": space.model_dump(mode="json"),
        "best": best.number,
        "trials": rows,
    }
    (out / "tune.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    (out / "tune.md").write_text(_table(rows, list(space.keys), best.number), encoding="utf-8")
    return Tuned(recipe=found, path=path, trials=rows)


def _table(rows: Sequence[Mapping[str, Any]], keys: Sequence[str], best: int) -> str:
    def number(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = [
        "Trials on validation patches; score: gain less the cost of bias and changed grain. No test image is read.",
        "",
        "| trial | state | score dB | gain dB | bias, share of noise | CFR | " + " | ".join(keys) + " |",
        "|" + "---|" * (6 + len(keys)),
    ]
    for row in sorted(rows, key=lambda r: -r.get("score", -np.inf)):
        measured = [number(row[k]) if k in row else "" for k in ("score", "gain", "bias", "cfr")]
        values = [number(row["values"].get(k, "")) for k in keys]
        mark = f"**{row['trial']}**" if row["trial"] == best else str(row["trial"])
        lines.append("| " + " | ".join([mark, row["state"], *measured, *values]) + " |")
    return "\n".join(lines) + "\n"
