"""From a decision to jobs: pure.

A job carries everything that shapes its result, as it was when the series was routed: engine, version and
weights, strength, how the derived objects are to be marked, and the settings of every destination. An edit
of config.yaml, or an upgrade, never changes what is already queued.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from engines.base import Card
from node.config.schema import Config, Destination, EngineSettings
from node.config.snapshot import snapshot
from node.dicom.uids import derivation_key
from node.model import Action, Decision, Series
from node.store.jobs import NewJob


def plan(
    series: Series,
    decision: Decision,
    config: Config,
    cards: Mapping[str, Card],
    *,
    utc_offset_minutes: int = 0,
    derived_gone: bool = False,
) -> tuple[NewJob, ...]:
    """Jobs that a decision asks for.

    Destinations that want different equipment modules cannot share objects, since one UID never stands for
    two different objects; each policy is a job of its own, with UIDs of its own.

    Parameters
    ----------
    series
        Closed; its generation decides between a whole series and an addition to one.
    decision
        Of ``node.route.decide``.
    config
        The version that the decision was made with.
    cards
        Engine cards by catalogue name.
    utc_offset_minutes
        Of this hospital's clocks now, for own times in objects whose source names no time zone.
    derived_gone
        Whether what was made of earlier generations is here no more. Nothing can be appended to it then: an instance
        that comes again would get other pixels, made of other neighbours, under the UID that PACS has.
    """
    if decision.action is not Action.ENHANCE:
        return ()
    settings = config.engines[decision.engine]
    rule = next(r for r in config.rules if r.name == decision.rule)
    card = cards[settings.engine]
    strength = next(s for s in (rule.strength, settings.strength, card.default_strength) if s is not None)
    groups: dict[str, dict[str, Destination]] = {}
    for name in decision.destinations:
        destination = config.destinations[name]
        groups.setdefault(destination.equipment, {})[name] = destination
    revise = (config.series.late == "revise" or derived_gone) and series.generation > 1
    revision = series.generation if revise else 1
    return tuple(
        _job(
            series, decision, settings, card, strength, equipment, group, config, revision, utc_offset_minutes
        )
        for equipment, group in sorted(groups.items())
    )


def _job(
    series: Series,
    decision: Decision,
    settings: EngineSettings,
    card: Card,
    strength: float,
    equipment: str,
    destinations: Mapping[str, Destination],
    config: Config,
    revision: int,
    utc_offset_minutes: int,
) -> NewJob:
    shape: dict[str, Any] = {
        "strength": strength,
        "options": dict(settings.options),
        "output": {
            "description_suffix": settings.description_suffix,
            "series_number_offset": settings.series_number_offset,
            "research_mark": settings.research_mark,
            "value2": settings.value2,
            "equipment": equipment,
        },
    }
    key = derivation_key(
        study_uid=series.key.study_uid,
        series_uid=series.key.series_uid,
        engine=card.name,
        engine_version=card.version,
        weights_sha256=card.weights_sha256,
        params=shape,
        rule=decision.rule,
    )
    append = series.generation > 1 and revision == 1
    return NewJob(
        rule=decision.rule,
        engine=card.name,
        params={
            **shape,
            "card": {"name": card.name, "version": card.version, "weights_sha256": card.weights_sha256},
            "runtime": settings.runtime,
            "enhance_vendor_denoised": settings.enhance_vendor_denoised,
            "key": key,
            "serial": config.node.ae_title,
            "utc_offset_minutes": utc_offset_minutes,
        },
        destinations={name: snapshot(d, config) for name, d in destinations.items()},
        derivation_key=_queue_key(key, revision, series.generation if append else 0),
        only_after_generation=series.generation - 1 if append else 0,
        revision=revision,
    )


def _queue_key(key: str, revision: int, generation: int) -> str:
    """One job per derivation, revision and, where instances are appended, generation."""
    return hashlib.sha256(f"{key} {revision} {generation}".encode("ascii")).hexdigest()
