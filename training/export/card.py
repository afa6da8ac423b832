"""Write card.yaml of an exported network, and read it back as the node will."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ruamel.yaml import YAML

from engines import card as engine_card
from engines.base import Modality
from engines.errors import CardInvalid
from training.errors import ExportError

if TYPE_CHECKING:
    from training.export import Exported

DISCLAIMER = "Primary diagnosis. Trained for research; train again on your own data before you rely on it."


def write_card(
    exported: Exported,
    *,
    version: str,
    title: str,
    family: Literal["cnn", "gan", "autoencoder"],
    modalities: Sequence[Modality],
    bound: float,
    trained_on: str,
    evaluated: str,
    intended_use: str,
    licence: str,
    not_for: str = DISCLAIMER,
    bound_sigmas: float = 4.0,
    default_strength: float = 0.6,
    neighbours: int = 1,
    lock: int = 32,
    ood_limit: float | None = None,
    trust: float | None = None,
) -> Path:
    """Write ``card.yaml`` beside the exported files; what the export measured is taken from it.

    Parameters
    ----------
    bound
        Largest change of a pixel: HU, or fraction of the series scale.
    lock
        Radius in pixels of the window whose mean is kept (G3).
    ood_limit
        Of autoencoders: the reconstruction error above which a slice is left as it was (G10), in HU or as a
        fraction of the series scale.

    trust
        Of autoencoders: see :func:`engines.restore.trusted`.

    Returns
    -------
    The card's path.

    Raises
    ------
    ExportError
        The node would refuse this card; nothing is left of it.
    """
    half: dict[str, Any] = {}
    if exported.fp16 is not None:
        half = {
            "model_fp16": exported.fp16.name,
            "model_fp16_sha256": exported.sha256[exported.fp16.name],
        }
    told: dict[str, Any] = {
        "name": exported.name,
        "version": version,
        "title": title,
        "family": family,
        "modalities": list(modalities),
        "unit": exported.unit,
        "model": exported.fp32.name,
        "weights_sha256": exported.sha256[exported.fp32.name],
        **half,
        "sigma_range": [float(s) for s in exported.sigma_range],
        "receptive_field": exported.receptive_field,
        "alignment": exported.alignment,
        "neighbours": neighbours,
        "bound_sigmas": float(bound_sigmas),
        "bound": float(bound),
        "default_strength": float(default_strength),
        "trained_on": trained_on,
        "evaluated": evaluated,
        "intended_use": intended_use,
        "not_for": not_for,
        "licence": licence,
        "parameters": {"lock": lock},
    }
    if ood_limit is not None:
        told["parameters"]["ood_limit"] = float(ood_limit)
    if trust is not None:
        told["parameters"]["trust"] = float(trust)
    if exported.scale != 1:
        told["scale"] = exported.scale
    path = exported.fp32.parent / "card.yaml"
    before = path.read_bytes() if path.exists() else None
    path.write_text(_yaml(told), encoding="utf-8")
    try:
        engine_card.read(path.parent)
    except CardInvalid as e:
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)
        raise ExportError(f"the node would refuse this card: {e}") from e
    return path


def _yaml(told: Mapping[str, Any]) -> str:
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.width = 100
    out = io.StringIO()
    writer.dump(dict(told), out)
    return out.getvalue()
