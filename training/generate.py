"""``python -m training generate``: new patches for a training, drawn by a GAN or made of old ones.

The paper says that GANs widen data sets. A GAN can only draw what it has seen, so whether that helps is measured
(training/widen.py), and everything that was made this way says so: each row of the index holds ``synthetic: gan``
(or ``classical``) and the digest of the weights that drew it, and the split of the patients that it learned from.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn, optim

from training import checkpoint, losses, typed
from training.checkpoint import Progress
from training.data import patches
from training.data.patches import Floats
from training.data.shards import Shard, Writer, read
from training.errors import DataError, Diverged
from training.networks.generator import Generator, PatchCritic, opened, pressed, steepness
from training.prepare import CT_SPAN, MR_SPAN

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]
Say = Callable[[str], None]
Using = Literal["gan", "classical"]

FOLDER = Path(__file__).resolve().parent / "recipes" / "generate"
LAST = "last.safetensors"
SAVE_S = 45.0
TELL = 100
STEEP_EVERY = 8
"""Updates between two penalties of the critic's steepness, which cost as much as four updates without."""


class DataPart(typed.Part):
    """What is learned from.

    Attributes
    ----------
    truth
        Folders of shards, training material only.
    kinds
        Which kinds to learn and to draw, by name; empty: all, told apart by nothing.
    nearest_mm
        Stacks whose slices lie further apart are left out: their neighbours look alike in nothing.
    split
        Digest of the split of patients, if there are any; it goes into all that is drawn.
    """

    unit: Literal["HU", "arbitrary"]
    truth: Annotated[list[str], Field(min_length=1)]
    kinds: list[str] = Field(default_factory=list)
    patch: Literal[64, 128] = 64
    nearest_mm: Positive = 3.0
    licence: str
    split: str = ""


class NetworkPart(typed.Part):
    """Sizes of training/networks/generator.py."""

    code: Count = 64
    width: Annotated[int, Field(gt=0, multiple_of=4)] = 64
    critic_width: Count = 32


class OptimPart(typed.Part):
    """How long and how fast; it ends with ``updates`` or ``minutes``, whichever comes first."""

    updates: Count
    minutes: Positive | None = None
    batch: Annotated[int, Field(ge=2)] = 12
    rate: Positive = 6e-4
    critic_rate: Positive = 6e-4
    steepness: Annotated[float, Field(ge=0)] = 0.3
    average: Annotated[float, Field(ge=0, lt=1)] = 0.99


class Generation(typed.Part):
    """The recipe of a generator."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]
    seed: int = 1
    data: DataPart
    network: NetworkPart = NetworkPart()
    optim: OptimPart

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe as canonical JSON."""
        told = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(told.encode()).hexdigest()


def load(path: Path | str) -> Generation:
    """Read a recipe of a generator: a path, or the name of a shipped one.

    Raises
    ------
    RecipeError
    """
    return typed.load(Generation, path, FOLDER)


def sources(recipe: Generation, data: Path) -> tuple[Shard, ...]:
    """The shards to learn from.

    Raises
    ------
    DataError
        None is left, one is of another split or a test patient's, or was itself drawn.
    """
    part = recipe.data
    found = [s for name in part.truth for s in read(data / name)]
    for shard in found:
        if shard.facts.get("synthetic"):
            raise DataError(f"shard {shard.name} was itself generated", hint="learn from what was not")
        if str(shard.facts.get("split", "")) != part.split or shard.facts.get("part", "train") != "train":
            raise DataError(
                f"shard {shard.name} is not of the training patients of the recipe's split",
                hint="data.split of the recipe is the hash in split.json; see docs/training.md",
            )
    kept = tuple(
        s
        for s in found
        if s.spacing_mm[0] <= part.nearest_mm and (not part.kinds or s.facts.get("kind") in part.kinds)
    )
    if not kept:
        raise DataError(f"{recipe.name}: no shard is left", hint="see data.kinds and data.nearest_mm")
    return kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Patches to learn from."""

    shards: Sequence[Shard]
    kinds: Sequence[str]
    unit: str
    size: int

    def which(self, shard: Shard) -> int:
        """The number of a shard's kind."""
        return self.kinds.index(str(shard.facts["kind"])) if self.kinds else 0

    def one(self, rng: np.random.Generator) -> tuple[Floats, int, Shard]:
        """A patch of something: the most telling of three tries; its kind, and where it is from."""
        best: tuple[float, Floats, Shard] | None = None
        for _ in range(3):
            shard = self.shards[int(rng.integers(len(self.shards)))]
            (values,) = patches.turned([shard.crop(*patches.place(shard, self.size, rng))], rng)
            floor = -950.0 if self.unit == "HU" else 0.1
            seen = float((values[1] > floor).mean())
            if best is None or seen > best[0]:
                best = (seen, values, shard)
            if seen > 0.5:
                break
        assert best is not None
        return best[1], self.which(best[2]), best[2]


def source_of(recipe: Generation, data: Path) -> Source:
    """What a recipe learns from."""
    part = recipe.data
    return Source(shards=sources(recipe, data), kinds=part.kinds, unit=part.unit, size=part.patch)


class Gan:
    """One generator and its critic, trained by the hinge loss; resumed as a training is.

    Parameters
    ----------
    data
        The folder that holds the folders of shards.
    out
        Where the checkpoint goes.
    """

    def __init__(self, recipe: Generation, data: Path, out: Path) -> None:
        self.recipe, self.out = recipe, out
        part = recipe.data
        self.source = source_of(recipe, data)
        torch.manual_seed(recipe.seed)
        n_kinds = max(1, len(part.kinds))
        self.network = Generator(part.patch, n_kinds, recipe.network.code, recipe.network.width)
        self.critic = PatchCritic(n_kinds, recipe.network.critic_width)
        for network in self._trained():
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a quarter faster on a CPU
        self.mean = copy.deepcopy(self.network).requires_grad_(False)
        betas = (0.0, 0.99)
        self.optimisers = {
            "optim": optim.Adam(self.network.parameters(), recipe.optim.rate, betas=betas),
            "optim2": optim.Adam(self.critic.parameters(), recipe.optim.critic_rate, betas=betas),
        }
        self.progress = Progress(step=0, seconds=0.0, best=0.0, recipe=recipe.digest, split=part.split)

    def _trained(self) -> list[nn.Module]:
        return [self.network, self.critic]

    def _networks(self) -> dict[str, nn.Module]:
        return {"net": self.network, "ema": self.mean, "critic": self.critic}

    def resume(self) -> bool:
        """Go on where the last run stopped; False if there was none.

        Raises
        ------
        CheckpointError
            The checkpoint is of another recipe.
        """
        wanted = (self.recipe.digest, self.progress.split)
        held = (self._networks(), self.optimisers)
        progress = checkpoint.go_on(self.out / LAST, self.recipe.name, wanted, *held)
        self.progress = progress or self.progress
        return progress is not None

    def save(self) -> None:
        """Write the checkpoint."""
        checkpoint.save(self.out / LAST, self.progress, self._networks(), self.optimisers)

    @property
    def done(self) -> bool:
        """Whether the recipe's updates or minutes are over."""
        part = self.recipe.optim
        late = part.minutes is not None and self.progress.seconds >= 60 * part.minutes
        return self.progress.step >= part.updates or late

    def _coded(self, n: int, kinds: Tensor, seed: torch.Generator, network: Generator) -> Tensor:
        out: Tensor = network(torch.randn(n, network.code, generator=seed), kinds, seed)
        return out

    def step(self) -> dict[str, float]:
        """One update of both; what it is shown depends on the seed and the step alone."""
        part = self.recipe.optim
        rng = np.random.default_rng([self.recipe.seed, self.progress.step])
        seed = torch.Generator().manual_seed(int(rng.integers(2**62)))
        drawn = [self.source.one(rng) for _ in range(part.batch)]
        real = pressed(torch.from_numpy(np.stack([d[0] for d in drawn])), self.source.unit)
        kinds = torch.tensor([d[1] for d in drawn])
        made = self._coded(part.batch, kinds, seed, self.network)
        self.optimisers["optim2"].zero_grad(set_to_none=True)
        judged = losses.hinge_critic(self.critic(real, kinds), self.critic(made.detach(), kinds))
        penalty = self.recipe.optim.steepness
        if penalty and self.progress.step % STEEP_EVERY == 0:
            judged = judged + STEEP_EVERY * penalty * steepness(self.critic, real, kinds)
        judged.backward()  # type: ignore[no-untyped-call]
        self.optimisers["optim2"].step()
        self.critic.requires_grad_(False)
        fooled = losses.hinge_maker(self.critic(made, kinds))
        self.optimisers["optim"].zero_grad(set_to_none=True)
        fooled.backward()  # type: ignore[no-untyped-call]
        self.optimisers["optim"].step()
        self.critic.requires_grad_(True)
        if not torch.isfinite(judged + fooled):
            raise Diverged(f"{self.recipe.name}: the loss is not a number", hint="lower optim.rate")
        keep = min(part.average, (1 + self.progress.step) / (10 + self.progress.step))
        with torch.no_grad():
            for mean, now in zip(self.mean.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(now.detach(), 1 - keep)
        return {"critic": float(judged.detach()), "maker": float(fooled.detach())}

    def learn(self, say: Say = lambda _: None) -> Progress:
        """Train to the end of the recipe; a minute is lost at most when it is killed."""
        with checkpoint.alone(self.out):
            return self._learn(say)

    def _learn(self, say: Say) -> Progress:
        saved = time.monotonic()
        while not self.done:
            began = time.monotonic()
            told = self.step()
            now = time.monotonic()
            self.progress = replace(
                self.progress, step=self.progress.step + 1, seconds=self.progress.seconds + now - began
            )
            if self.progress.step % TELL == 0:
                say(f"{self.recipe.name}: step {self.progress.step}, " + _line(told))
            if now - saved > SAVE_S:
                self.save()
                saved = now
        self.save()
        return self.progress

    @torch.no_grad()
    def draw(self, kinds: Sequence[int], seed: int) -> Floats:
        """Patches (N, 3, size, size) of the given kinds, in HU or shares of the scale."""
        self.mean.eval()
        drawn = torch.Generator().manual_seed(seed)
        made = self._coded(len(kinds), torch.tensor(list(kinds)), drawn, self.mean)
        return np.asarray(opened(made, self.source.unit).numpy(), np.float32)


def _line(told: Mapping[str, float]) -> str:
    return ", ".join(f"{k} {v:.3f}" for k, v in told.items())


def write(recipe: Generation, gan: Gan, folder: Path, n: int) -> int:
    """Write ``n`` drawn patches as shards, kinds as often as in what was learned from; returns how many are new.

    Raises
    ------
    DataError
        The folder holds what other weights drew.
    """
    digest = hashlib.sha256((gan.out / LAST).read_bytes()).hexdigest()
    writer = Writer(folder)
    if writer.names and any(s.facts.get("checkpoint_sha256") != digest for s in read(folder)):
        raise DataError(f"{folder.name} holds shards of other weights", hint="give another --out")
    span = CT_SPAN if recipe.data.unit == "HU" else MR_SPAN
    spacings = np.median([s.spacing_mm for s in gan.source.shards], axis=0)
    n_new = 0
    for i in range(n):
        name = f"{recipe.name}-{i:05d}"
        if name in writer.names:
            continue
        rng = np.random.default_rng([recipe.seed, 5, i])
        like = gan.source.shards[int(rng.integers(len(gan.source.shards)))]
        (made,) = gan.draw([gan.source.which(like)], int(rng.integers(2**62)))
        facts = {"kind": str(like.facts.get("kind", "")), "synthetic": "gan", "licence": recipe.data.licence}
        if recipe.data.split:
            facts |= {"split": recipe.data.split, "part": "train"}
        z, y, x = (float(v) for v in spacings)
        writer.add(
            name, made, (z, y, x), span=span, **facts, recipe_sha256=recipe.digest, checkpoint_sha256=digest
        )
        n_new += 1
    return n_new


def picture(path: Path, rows: Sequence[tuple[str, Sequence[Floats]]], unit: str) -> None:
    """Write a PNG: each row the middle slices of patches (3, P, P), in a wide and (CT) a soft-tissue window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    windows = (
        [("wide", -1000.0, 1000.0), ("L40 W400", -160.0, 240.0)] if unit == "HU" else [("0 to 1", 0.0, 1.0)]
    )
    n = max(len(held) for _, held in rows)
    figure = Figure(figsize=(n, len(rows) * len(windows) + 0.2), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows) * len(windows), n, squeeze=False)
    for r, (title, held) in enumerate(rows):
        for w, (window, low, high) in enumerate(windows):
            line = axes[r * len(windows) + w]
            line[0].set_title(f"{title}, {window}", fontsize=6, loc="left", pad=2)
            for axis, values in zip(line, held, strict=False):
                axis.imshow(values[1], cmap="gray", vmin=low, vmax=high)
            for axis in line:
                axis.set_axis_off()
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.97, 0.03, 0.12)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
