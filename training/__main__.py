"""``python -m training VERB``: shards, fit and what comes after; every verb says what it does with ``--help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from engines.catalog import ZOO
from engines.errors import EngineError
from training import verbs
from training.errors import TrainingError
from training.recipe import load


def _fit(asked: argparse.Namespace) -> int:
    verbs.threads(asked)
    return verbs.fitted(load(asked.recipe), asked, fresh=asked.fresh)


def _export(asked: argparse.Namespace) -> int:
    from training.ship import ship

    for name in asked.recipes:
        done = ship(load(name), asked.runs, asked.zoo, replace=asked.replace)
        fits = f"fp32 within {done.parity.fp32_max:.2g}, fp16 {done.parity.fp16_max:.2g} {done.parity.unit}"
        told = f"receptive field {done.receptive_field} px, {done.gflop:.1f} GFLOP, {fits}"
        sys.stdout.write(f"{done.name}: {told}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description="Train, judge and ship engines.")
    parser.add_argument(
        "--data", type=Path, default=Path("var/training"), help="folder of the folders of shards"
    )
    parser.add_argument("--runs", type=Path, default=Path("var/runs"), help="folder of checkpoints and logs")
    parser.add_argument("--threads", type=verbs.whole(0), default=0, help="of torch; 0 leaves its choice")
    named = parser.add_subparsers(dest="verb", required=True)
    fit = named.add_parser("fit", help="train a recipe, or go on with it")
    fit.add_argument("recipe", help="a YAML file, or the name of a shipped recipe")
    fit.add_argument("--fresh", action="store_true", help="begin anew")
    fit.add_argument("--quiet", action="store_true", help="no progress bar")
    fit.add_argument(
        "--stop-after", type=verbs.whole(0), default=None, help="updates to do in this run, at most"
    )
    fit.set_defaults(run=_fit)
    export = named.add_parser("export", help="ONNX files and card of an engine from a recipe's best weights")
    export.add_argument("recipes", nargs="+")
    export.add_argument("--zoo", type=Path, default=ZOO, help="folder of engines to write into")
    export.add_argument(
        "--replace", action="store_true", help="in the place of other weights of the same name and version"
    )
    export.set_defaults(run=_export)
    verbs.add(named)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    asked = _parser().parse_args(arguments)
    try:
        status: int = asked.run(asked)
    except (TrainingError, EngineError) as e:
        sys.stderr.write(f"{e.message}\n" + (f"{e.hint}\n" if e.hint else ""))
        return 1
    except OSError as e:  # the name alone: folders above it may be named after people
        what = Path(str(e.filename)).name if e.filename else "a file"
        sys.stderr.write(f"{what}: {e.strerror or type(e).__name__}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from the last checkpoint\n")
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
