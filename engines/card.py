"""card.yaml: what an engine's folder says of itself, read and checked."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from engines.base import Card, Family, Modality, Unit
from engines.errors import CardInvalid

MAX_BYTES = 64 * 1024

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,47}$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]


class CardFile(BaseModel):
    """The fields of card.yaml; see :class:`engines.base.Card` for those that are not told here.

    Attributes
    ----------
    core
        Classical engines: the algorithm, a key of ``engines.classical.CORES``.
    model
        Learned engines: the ONNX fp32 file in the same folder.
    weights_sha256
        Digest of ``model``, or of ``core`` and ``parameters`` (:func:`digest`).
    model_fp16, model_fp16_sha256
        Learned engines: the typed fp16 form of ``model``, for GPUs, and its digest. There is none for a network
        that carries the image itself.
    scale
        2 for super-resolution: the network returns detail of twice the matrix (engines/learned.py).
    parameters
        Of the algorithm. ``lock`` is read for every engine: the radius, in pixels, of the window whose
        mean is kept (G3). ``trust`` is read for autoencoders (:func:`engines.restore.trusted`), and so is
        ``ood_limit``: slices whose reconstruction error (HU, or a fraction of the series scale) is above it
        are left as they were (G10).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    name: Name
    version: Annotated[str, StringConstraints(pattern=r"^\d+\.\d+\.\d+$")]
    title: str
    family: Family
    modalities: Annotated[list[Modality], Field(min_length=1)]
    unit: Unit
    core: Literal["nlm", "tv", "wavelet"] | None = None
    model: FileName | None = None
    weights_sha256: Digest
    model_fp16: FileName | None = None
    model_fp16_sha256: Digest | None = None
    sigma_range: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=2, max_length=2)]
    receptive_field: Annotated[int, Field(ge=0, le=512)]
    alignment: Annotated[int, Field(ge=1, le=64)] = 1
    neighbours: Annotated[int, Field(ge=0, le=1)] = 0
    bound_sigmas: Annotated[float, Field(ge=0, le=8)] = 4.0
    bound: Annotated[float, Field(ge=0)]
    scale: Literal[1, 2] = 1
    default_strength: Share = 0.6
    trained_on: str = ""
    evaluated: str = ""
    intended_use: str = ""
    not_for: str = ""
    licence: str = "Apache-2.0"
    parameters: dict[str, int | float | str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _whole(self) -> CardFile:
        learned = self.family in ("cnn", "gan", "autoencoder")
        if (self.core is not None) != (self.family == "classical"):
            raise ValueError("core is for the family classical, and only for it")
        if (self.model is not None) != learned:
            raise ValueError("model is for learned families, and only for them")
        if (self.model_fp16 is None) != (self.model_fp16_sha256 is None):
            raise ValueError("model_fp16 and model_fp16_sha256 go together")
        if self.model_fp16 is not None and (not learned or self.model_fp16 == self.model):
            raise ValueError("model_fp16 is for learned families, a file beside model")
        if self.scale != 1 and self.family not in ("cnn", "gan"):
            raise ValueError("scale 2 is for the families cnn and gan")
        limit = self.parameters.get("ood_limit")
        if limit is not None and (self.family != "autoencoder" or isinstance(limit, str) or not limit > 0):
            raise ValueError("parameters.ood_limit is a number above 0, for the family autoencoder")
        trust = self.parameters.get("trust")
        if trust is not None and (self.family != "autoencoder" or isinstance(trust, str) or not trust > 0):
            raise ValueError("parameters.trust is a number above 0, for the family autoencoder")
        if self.sigma_range[0] >= self.sigma_range[1]:
            raise ValueError("sigma_range is the lowest noise and the highest")
        lock = self.parameters.get("lock", 32)
        if not isinstance(lock, int) or not 0 <= lock <= 128:
            raise ValueError("parameters.lock is a radius in pixels, 0 to 128")
        return self


def digest(core: str | None, parameters: dict[str, int | float | str]) -> str:
    """SHA-256 of an engine without weights: its algorithm and parameters, as canonical JSON."""
    told = json.dumps({"core": core, "parameters": parameters}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(told.encode()).hexdigest()


SEAL = "seal.json"
"""Beside engine folders: name -> SHA-256 of its card, of all that belong there. The shipped zoo has one, made by
``python -m engines.canary``."""


def seals(folder: Path) -> Mapping[str, str] | None:
    """The digests of the cards of a folder of engines; None if it is not sealed.

    Raises
    ------
    CardInvalid
        There is a seal that cannot be read: no engine of this folder is known to be what was released.
    """
    hint = "install the release again"
    try:
        data = _plain(folder, SEAL)
        told = json.loads(data)
        return {str(name): str(sha256) for name, sha256 in told.items()}
    except FileNotFoundError:
        return None
    except CardInvalid as e:
        raise CardInvalid(e.message, hint=hint) from e
    except (OSError, ValueError, AttributeError, RecursionError) as e:
        raise CardInvalid(f"{folder.name}: {SEAL} cannot be read", hint=hint) from e


def content(folder: Path) -> bytes:
    """The bytes of ``folder/card.yaml``, a plain file.

    Raises
    ------
    CardInvalid
    """
    try:
        return _plain(folder, "card.yaml")
    except OSError as e:
        raise CardInvalid(f"{folder.name}: card.yaml cannot be read: {e.strerror}") from e


def _plain(folder: Path, name: str) -> bytes:
    """The bytes of a small plain file; OSError where it cannot be opened, CardInvalid where it is none."""
    # A link could lead anywhere, a pipe would block every process of the node.
    handle = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise CardInvalid(f"{folder.name}: {name} is not a plain file")
    with os.fdopen(handle, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise CardInvalid(f"{folder.name}: {name} is larger than 64 KiB")
    return data


def read(folder: Path, seal: Mapping[str, str] | None = None) -> CardFile:
    """Read ``folder/card.yaml``.

    Parameters
    ----------
    seal
        Of the folder that it is in (:func:`seals`): nothing parses a card that is not the sealed one.

    Raises
    ------
    CardInvalid
        With every fault in its message; the folder's name must be the engine's.
    """
    data = content(folder)
    if seal is not None and seal.get(folder.name) != hashlib.sha256(data).hexdigest():
        raise CardInvalid(
            f"{folder.name}: card.yaml is not the one that was released",
            hint="install the release again; who made a new engine seals it with `python -m engines.canary`",
        )
    try:
        loaded = YAML(typ="safe", pure=True).load(data.decode("utf-8"))
    # A date or number that is none (2001-99-99, !!int x) leaves the parser as what its constructor raised.
    except (YAMLError, ValueError, KeyError, TypeError, RecursionError) as e:
        first = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise CardInvalid(f"{folder.name}: card.yaml is not YAML: {first}") from e
    if not isinstance(loaded, dict):
        raise CardInvalid(f"{folder.name}: card.yaml is not a mapping")
    try:
        card = CardFile.model_validate(loaded)
    except ValidationError as e:
        faults = "; ".join(f"{'.'.join(map(str, f['loc'])) or 'card'}: {f['msg']}" for f in e.errors())
        raise CardInvalid(f"{folder.name}: {faults}") from e
    if card.name != folder.name:
        raise CardInvalid(f"{folder.name}: the card names another engine, {card.name}")
    return card


def as_card(file: CardFile) -> Card:
    """The card as the rest of the node knows it."""
    runtime = {"classical": "numpy", "identity": "identity"}.get(file.family, "onnx")
    parameters: dict[str, Any] = dict(file.parameters)
    return Card(
        name=file.name,
        version=file.version,
        family=file.family,
        modalities=tuple(file.modalities),
        unit=file.unit,
        sigma_range=(file.sigma_range[0], file.sigma_range[1]),
        receptive_field=file.receptive_field,
        alignment=file.alignment,
        neighbours=file.neighbours,
        bound_sigmas=file.bound_sigmas,
        bound=file.bound,
        weights_sha256=file.weights_sha256,
        scale=file.scale,
        title=file.title,
        runtime=runtime,
        default_strength=file.default_strength,
        trained_on=file.trained_on,
        evaluated=file.evaluated,
        intended_use=file.intended_use,
        not_for=file.not_for,
        licence=file.licence,
        parameters=parameters,
    )
