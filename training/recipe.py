"""Recipes: one YAML file per experiment, checked before anything runs.

The digest of a recipe goes into every checkpoint and exported network, so that weights can be told to the byte what
they were made from.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from training.errors import RecipeError

Positive = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, le=10)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(gt=0)]

FOLDER = Path(__file__).resolve().parent / "recipes"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _rising(held: list[float]) -> list[float]:
    if held[0] >= held[1]:
        raise ValueError("the lowest noise and the highest")
    return held


Levels = Annotated[list[Positive], Field(min_length=2, max_length=2), AfterValidator(_rising)]


class NetworkPart(_Part):
    """Which network: a key of training.networks.KINDS, and its options."""

    kind: str
    options: dict[str, int | float | str | bool | list[int]] = Field(default_factory=dict)


class DataPart(_Part):
    """What it is shown.

    Attributes
    ----------
    truth, noise, validation
        Folders of shards under the data folder; ``noise`` may be empty (image-domain noise only).
    projected
        Share of patches whose noise went through projections.
    sigma
        Range of the noise: HU, or share of the series scale.
    held_out
        Kinds of shards that are left out: for leave-one-domain-out.
    lesions, at_lesions
        Share of patches that get small lesions, and how many times an error counts in the middle of one.
    large, twins
        Share of those that get a large disc under the lesions, and of those that the network also sees without any,
        for ``loss.kept``.
    sharp
        MR: share of patches whose picture reaches as far in k-space as their noise does (training/data/patches.py).
    """

    unit: Literal["HU", "arbitrary"]
    truth: Annotated[list[str], Field(min_length=1)]
    noise: list[str] = Field(default_factory=list)
    validation: Annotated[list[str], Field(min_length=1)]
    task: Literal["noise", "detail"] = "noise"
    patch: Annotated[int, Field(ge=32, multiple_of=8)] = 128
    projected: Share = 0.5
    sigma: Levels
    told: Share = 0.15
    alone: Share = 0.2
    held_out: list[str] = Field(default_factory=list)
    lesions: Share = 0.0
    at_lesions: Positive = 5.0
    large: Share = 0.0
    twins: Share = 0.0
    sharp: Share = 0.0
    licence: str
    split: str = ""


class LossPart(_Part):
    """Weights of the parts of the loss, see training/losses.py."""

    charbonnier: Positive = 0.2
    gradient: Annotated[float, Field(ge=0)] = 0.1
    lowpass: Annotated[float, Field(ge=0)] = 0.05
    spectrum: Annotated[float, Field(ge=0)] = 0.0
    divergence: Annotated[float, Field(ge=0)] = 0.0
    kept: Annotated[float, Field(ge=0)] = 0.0


class AdversaryPart(_Part):
    """The critic: where the generator begins, and how much the critic and the noise texture weigh.

    Attributes
    ----------
    begins_with
        Name of the recipe whose weights the generator starts from.
    grain
        How much noise a slice of full dose still holds, as a share of that of the slice that is given: the
        critic is shown such slices as the real ones, so that it never asks for a picture without any noise.
    strength
        At which the texture of what noise is left is compared with that of the noise: the engine's, say.
    """

    begins_with: str
    weight: Positive = 0.01
    texture: Annotated[float, Field(ge=0)] = 0.05
    grain: Share = 0.4
    strength: Annotated[float, Field(gt=0, le=1)] = 1.0
    rate: Rate = 2e-4


class OptimPart(_Part):
    """How long and how fast.

    Attributes
    ----------
    updates, minutes
        Training ends with whichever comes first; the learning rate follows the further of the two.
    precision
        Of the trunk; ``bf16`` on processors that have it, ``fp16`` on GPUs, or ``fp32``.
    """

    updates: Count
    minutes: Positive | None = None
    batch: Count = 8
    rate: Rate = 1e-3
    last_rate: Rate = 1e-5
    warmup: Annotated[int, Field(ge=0)] = 200
    decay: Annotated[float, Field(ge=0)] = 1e-4
    clip: Positive = 1.0
    average: Share = 0.999
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    checkpoint_s: Positive = 45.0
    validate_s: Positive = 90.0


class EnginePart(_Part):
    """What the exported engine's card says beyond what is measured.

    Attributes
    ----------
    trust
        Of an autoencoder (engines/restore.py), where the engine is to believe less than it was trained with.
    mean_with
        Name of the recipe that this one went on from: the engine's weights are the mean of both. Stages that pull in
        two directions make a better engine half way (Wortsman et al., Model soups, ICML 2022).
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,47}$")]
    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")] = "1.0.0"
    title: str
    family: Literal["cnn", "gan", "autoencoder"]
    modality: Literal["CT", "MR"]
    sigma_range: Levels
    bound: Positive
    lock: Annotated[int, Field(ge=0, le=128)] = 16
    default_strength: Share = 0.6
    trained_on: str
    intended_use: str
    not_for: str
    evaluated: str = ""
    ood_limit: Positive | None = None
    trust: Positive | None = None
    mean_with: str | None = None


class Recipe(_Part):
    """One experiment.

    Attributes
    ----------
    begins_with
        Name of the recipe whose best weights this one goes on from; nothing means fresh weights.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 1
    network: NetworkPart
    data: DataPart
    loss: LossPart = LossPart()
    adversary: AdversaryPart | None = None
    optim: OptimPart
    engine: EnginePart | None = None
    begins_with: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        if (self.network.kind == "sr") != (self.data.task == "detail"):
            raise ValueError("network sr and data.task detail go together")
        if (
            self.data.projected > 0
            and self.data.unit == "HU"
            and not self.data.noise
            and self.data.task == "noise"
        ):
            raise ValueError("data.projected needs data.noise, or say projected: 0")
        if bool(self.loss.kept) != bool(self.data.twins) or (self.data.twins and not self.data.lesions):
            raise ValueError("loss.kept, data.twins and data.lesions go together")
        if self.loss.kept and self.network.kind != "pu":
            raise ValueError("loss.kept is for the network pu")
        return self

    @property
    def scale(self) -> int:
        """Pixels of the output per pixel of the input, along an axis."""
        return 2 if self.data.task == "detail" else 1

    @property
    def digest(self) -> str:
        """SHA-256 of what makes the weights, as canonical JSON: all but the card and how often it is saved."""
        kept = self.model_dump(mode="json", exclude={"engine": True, "optim": {"checkpoint_s", "validate_s"}})
        # Recipes from before these were keys keep their digests.
        if self.begins_with is None:
            del kept["begins_with"]
        if not self.data.lesions:
            del kept["data"]["lesions"]
        if self.data.at_lesions == DataPart.model_fields["at_lesions"].default:
            del kept["data"]["at_lesions"]
        for part, key in (("data", "large"), ("data", "twins"), ("data", "sharp"), ("loss", "kept")):
            if not kept[part][key]:
                del kept[part][key]
        if self.adversary is not None and self.adversary.strength == 1.0:
            del kept["adversary"]["strength"]
        told = json.dumps(kept, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(told.encode()).hexdigest()


def parse(text: str, name: str) -> Recipe:
    """Check the text of a recipe.

    Raises
    ------
    RecipeError
        With every fault, by key; a fault of YAML with its line.
    """
    try:
        loaded: Any = YAML(typ="safe", pure=True).load(text)
    # A date or number that is none (2001-99-99) leaves the parser as what its constructor raised.
    except (YAMLError, ValueError, KeyError, TypeError, RecursionError) as e:
        mark = getattr(e, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise RecipeError(f"{name}: not YAML{where}") from e
    if not isinstance(loaded, dict):
        raise RecipeError(f"{name}: not a mapping")
    try:
        return Recipe.model_validate(loaded)
    except ValidationError as e:
        faults = "; ".join(f"{'.'.join(map(str, f['loc'])) or 'recipe'}: {f['msg']}" for f in e.errors())
        raise RecipeError(f"{name}: {faults}", hint="see training/recipes for recipes that work") from e


def load(path: Path | str) -> Recipe:
    """Read a recipe: a path, or the name of a shipped one.

    Raises
    ------
    RecipeError
    """
    file = Path(path)
    if not file.suffix:
        file = FOLDER / f"{file.name}.yaml"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        there = ", ".join(sorted(p.stem for p in FOLDER.glob("*.yaml")))
        raise RecipeError(f"{file.name}: cannot be read", hint=f"a path, or one of {there}") from e
    return parse(text, file.name)
