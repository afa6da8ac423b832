"""Verbs beside fit and export: tune, generate, shards, retrain, report. Each is an argument list and a call."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training import prepare, typed
from training.errors import DataError
from training.prepare import SEEDS, Wanted
from training.recipe import Recipe, load

Verbs = Any
Run = Callable[[argparse.Namespace], int]
TRUTHS = {
    "ct-truth": 500,
    "ct-calm": 500,
    "ct-validation": 40,
    "ct-noise": 189,
    "mr-truth": 320,
    "mr-validation": 30,
    "toy-truth": 24,
    "toy-validation": 8,
}
"""How many stacks the shipped recipes are trained on."""

WORDS = {"ct": "ct-truth", "mr": "mr-truth", "toy": "toy-truth"}


WHAT = ("ct", "ct-calm", "ct-validation", "ct-noise", "mr", "mr-validation", "toy", "toy-validation")


def say(text: str) -> None:
    """A line to a person."""
    sys.stderr.write(f"{text}\n")


def whole(least: int) -> Callable[[str], int]:
    """A whole number of at least ``least``, for argparse."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is below {least}")
        return value

    return number


def threads(asked: argparse.Namespace) -> None:
    """Give torch as many threads as were asked for."""
    import torch

    if asked.threads:
        torch.set_num_threads(asked.threads)


def fitted(recipe: Recipe, asked: argparse.Namespace, *, fresh: bool = False) -> int:
    """Train a recipe to its end, or go on with it."""
    from training.fit import Fit
    from training.show import Bar

    fit = Fit(recipe, asked.data, asked.runs / recipe.name, asked.runs)
    resumed = False if fresh else fit.resume()
    with Bar(recipe.name, quiet=asked.quiet or fit.where.rank > 0) as bar:
        bar.say(f"{recipe.name}: {'goes on at' if resumed else 'begins at'} step {fit.progress.step}")
        progress = fit.run(bar.update, stop_after=asked.stop_after)
        bar.say(
            f"{recipe.name}: step {progress.step}, {progress.seconds:.0f} s, best gain {progress.best:.2f} dB"
        )
    return 0


def _shorter(recipe: Recipe, updates: int) -> Recipe:
    """A recipe with another number of updates; 0 leaves its own."""
    if not updates:
        return recipe
    told = recipe.model_dump(mode="json")
    told["optim"]["updates"] = updates
    return typed.checked(Recipe, told, recipe.name)


def _secret(path: Path | None) -> str:
    """The text of a file that keeps a secret.

    Raises
    ------
    DataError
        It cannot be read, or there is nothing in it: hashes without a secret would tell patients' numbers.
    """
    if path is None:
        return ""
    try:
        told = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"the secret in {path.name} cannot be read", hint="any long text in UTF-8") from e
    if not told:
        raise DataError(f"{path.name} holds no secret", hint="put any long text into it, and keep it")
    return told


# tune ----------------------------------------------------------------------------------------------
def _tune(asked: argparse.Namespace) -> int:
    from training import space
    from training.tune import tune

    threads(asked)
    recipe = load(asked.recipe)
    done = tune(
        recipe, space.load(asked.space, recipe), asked.data, asked.runs, n_trials=asked.trials, say=say
    )
    sys.stdout.write(f"{done.path}\n")
    return 0


def _add_tune(verbs: Verbs) -> None:
    verb = verbs.add_parser("tune", help="search a recipe's best values, on validation shards only")
    verb.add_argument("recipe")
    verb.add_argument("--trials", type=whole(1), default=20, help="in all, with those of earlier runs")
    verb.add_argument("--space", default="defaults", help="a YAML file of what is varied, or `defaults`")
    verb.set_defaults(run=_tune)


# generate ------------------------------------------------------------------------------------------
def _generate(asked: argparse.Namespace) -> int:
    import numpy as np

    from training import generate, widen

    threads(asked)
    recipe = generate.load(asked.recipe)
    out = asked.out or (recipe.name if asked.using == "gan" else f"{recipe.name}-classical")
    gan = None
    if asked.using == "gan":
        gan = generate.Gan(recipe, asked.data, asked.runs / recipe.name)
        if not asked.fresh and gan.resume():
            say(f"{recipe.name}: goes on at step {gan.progress.step}")
        gan.learn(say)
        n_new = generate.write(recipe, gan, asked.data / out, asked.n)
    else:
        n_new = widen.write_classical(recipe, asked.data, asked.data / out, asked.n)
    say(f"{out}: {n_new} new shards")
    if asked.picture is not None:
        source = generate.source_of(recipe, asked.data)
        rng = np.random.default_rng(recipe.seed)
        real = [source.one(rng)[0] for _ in range(12)]
        generate.picture(
            asked.picture, [("truth", real), (asked.using, widen.some(asked.data / out, 12))], source.unit
        )
    if asked.compare is not None:
        judged = _shorter(load(asked.compare), asked.updates)
        seeds = list(range(1, asked.seeds + 1))
        figures = widen.compare(judged, asked.data, asked.runs, out, seeds=seeds, say=say)
        sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 0


def _add_generate(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "generate", help="new shards to widen a set, labelled synthetic, and whether they help"
    )
    verb.add_argument("recipe", help="of a generator: a YAML file, or generate-ct or generate-mr")
    verb.add_argument("--n", type=whole(1), default=250, help="shards in the folder when it is done")
    verb.add_argument(
        "--using", choices=["gan", "classical"], default="gan", help="drawn, or warped old ones"
    )
    verb.add_argument("--out", help="name of the folder of shards; default: the recipe's")
    verb.add_argument("--fresh", action="store_true", help="train the generator anew")
    verb.add_argument("--picture", type=Path, help="PNG of truths beside what was made: look at it")
    verb.add_argument(
        "--compare", metavar="RECIPE", help="train this recipe with and without, tell the difference"
    )
    verb.add_argument(
        "--updates", type=whole(0), default=0, help="of the compared trainings; default: the recipe's"
    )
    verb.add_argument("--seeds", type=whole(1), default=2, help="pairs of compared trainings")
    verb.set_defaults(run=_generate)


# shards --------------------------------------------------------------------------------------------
def _shards(asked: argparse.Namespace) -> int:
    if asked.what == "real":
        return _real(asked)
    folder = WORDS.get(asked.what, asked.what)
    seed = (
        SEEDS["validation" if folder.endswith("validation") else "train"]
        if asked.seed is None
        else asked.seed
    )
    wanted = Wanted(folder=asked.data / folder, n=TRUTHS[folder] if asked.n is None else asked.n, seed=seed)
    if folder == "ct-noise":
        threads(asked)
        prepare.ct_noise(wanted, asked.data / "ct-truth", say)
    elif folder.startswith("mr"):
        if asked.labels is None:
            raise DataError(
                "no label map was given", hint="NIfTI files of whole-head labels: --labels FOLDER"
            )
        if not asked.labels.is_dir():
            raise DataError(f"no folder {asked.labels.name!r}", hint="NIfTI files of labels: --labels FOLDER")
        maps = sorted(p for p in asked.labels.iterdir() if p.name.endswith((".nii", ".nii.gz")))
        prepare.mr_truth(wanted, maps, say)
    else:
        prepare.ct_truth(wanted, say, calm=folder == "ct-calm")
    return 0


def _real(asked: argparse.Namespace) -> int:
    if asked.images is None:
        raise DataError("no folder of images was given", hint="shards real FOLDER --modality CT")
    made = _written(asked, asked.name)
    sys.stdout.write(json.dumps({"shards": made.n, "split": made.split_hash}) + "\n")
    return 0


def _written(asked: argparse.Namespace, name: str) -> Any:
    from training.data import real
    from training.data.folder import USUAL_PATTERN
    from training.data.records import Found

    ask = real.Ask(
        images=asked.images, kind=asked.kind, modality=asked.modality, licence=asked.licence,
        secret=_secret(asked.secret_file),
        patient_pattern=asked.patient_pattern or USUAL_PATTERN, n_slices=asked.slices, noisiest=asked.noisiest,
    )  # fmt: skip
    made = real.write(
        ask, asked.data, name, given=asked.split, salt=asked.salt, fractions=asked.fractions, say=say
    )
    for reason, n in sorted(Found(scans=(), left_out=made.left_out).reasons().items()):
        say(f"left out: {n} x {reason}")
    return made


def _images(verb: argparse.ArgumentParser, name: str) -> None:
    verb.add_argument(
        "--kind", choices=["folder", "lidc", "ixi", "mayo"], default="folder", help="the loader"
    )
    verb.add_argument("--name", default=name, help="folders NAME-train, NAME-validation and NAME/split.json")
    verb.add_argument("--split", type=Path, help="split.json to use; default: the one there, or a new one")
    verb.add_argument("--salt", default="luminode", help="of a new split: another one gives another split")
    verb.add_argument("--fractions", type=float, nargs=3, default=[0.7, 0.15, 0.15], metavar="SHARE")
    verb.add_argument("--secret-file", type=Path, help="a secret for the hashes of patients' numbers")
    verb.add_argument(
        "--patient-pattern", default="", help="regular expression: who a NIfTI file is of, by its path"
    )
    verb.add_argument(
        "--licence", default="own images, not for others", help="of the images; it goes into the card"
    )
    verb.add_argument("--slices", type=whole(3), default=64, help="of a scan at most, from its middle")
    verb.add_argument(
        "--noisiest", type=float, default=0.0, help="leave out noisier scans: HU, or share of the scale"
    )


def _add_shards(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "shards", help="make training material, synthetic or from images; goes on where it stopped"
    )
    verb.add_argument("what", choices=[*WHAT, "real"])
    verb.add_argument("images", type=Path, nargs="?", help="real: the folder of images")
    verb.add_argument("--n", type=whole(1), help="how many stacks; default: as the shipped recipes")
    verb.add_argument("--seed", type=whole(0), help="default: as the shipped recipes")
    verb.add_argument("--labels", type=Path, help="mr: folder of NIfTI label maps")
    verb.add_argument("--modality", choices=["CT", "MR"], default="CT", help="real: which")
    _images(verb, "own")
    verb.set_defaults(run=_shards)


# retrain -------------------------------------------------------------------------------------------
def _retrain(asked: argparse.Namespace) -> int:
    from training import retrain

    threads(asked)
    recipe = load(asked.recipe)
    asked.modality = "CT" if recipe.data.unit == "HU" else "MR"
    _written(asked, asked.name)
    copy = _shorter(retrain.own(recipe, asked.data, asked.name, asked.runs, alone=asked.alone), asked.updates)
    if copy.engine is None:
        say(f"{copy.name} makes no engine: its recipe, or the one that it is a copy of, has no part `engine`")
    path = retrain.write(copy, asked.runs)
    status = fitted(copy, asked)
    sys.stdout.write(f"{path}\n")
    return status


def _add_retrain(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "retrain", help="a recipe on your own images: shards, a copy of the recipe, training"
    )
    verb.add_argument("recipe")
    verb.add_argument("--images", type=Path, required=True, help="folder of DICOM or NIfTI")
    verb.add_argument("--alone", action="store_true", help="without the recipe's synthetic material")
    verb.add_argument("--updates", type=whole(0), default=0, help="default: the recipe's")
    verb.add_argument("--quiet", action="store_true", help="no progress bar")
    verb.add_argument("--stop-after", type=whole(0), default=None, help="updates to do in this run, at most")
    _images(verb, "own")
    verb.set_defaults(run=_retrain)


# report --------------------------------------------------------------------------------------------
def _report(asked: argparse.Namespace) -> int:
    from engines.catalog import Catalog
    from training.report.build import build
    from training.report.section import Context

    threads(asked)
    context = Context(
        catalog=Catalog.default([asked.zoo] if asked.zoo else []),
        corpus=asked.corpus,
        data=asked.data,
        runs=asked.runs,
        out=asked.out,
        quick=asked.quick,
        threads=asked.threads or 1,
        say=say,
    )
    for section in build(context, [n for n in asked.only.split(",") if n]):
        sys.stdout.write(f"{asked.out / section.name}.md\n")
    return 0


def _add_report(verbs: Verbs) -> None:
    verb = verbs.add_parser("report", help="measure the engines and write the pages of docs/evaluation")
    verb.add_argument(
        "--corpus", type=Path, help="folder of real series; sections that need it say so without"
    )
    verb.add_argument("--only", default="", help="names of sections, with commas")
    verb.add_argument("--out", type=Path, default=Path("docs/evaluation"))
    verb.add_argument("--quick", action="store_true", help="a small part of everything")
    verb.add_argument("--zoo", type=Path, help="a folder of engines beside the shipped ones")
    verb.set_defaults(run=_report)


def add(verbs: Verbs) -> None:
    """Add all verbs of this module to a command's."""
    for one in (_add_tune, _add_generate, _add_shards, _add_retrain, _add_report):
        one(verbs)
