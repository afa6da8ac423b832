"""Which rule takes a series, and what becomes of it: pure, every condition looked at is reported.

Rules are read downwards; the first whose conditions all hold decides. Up to and including that rule every
condition gives a :class:`~node.model.Verdict`, those after a failed one too, so that an admin sees at once
all that keeps a series from a rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from node.config.conditions import Condition
from node.config.schema import Rule
from node.model import Action, Decision, Scalar, SeriesHeader, Values, Verdict

MAX_FOUND = 200
"""Characters of what was found that a verdict keeps."""

NO_RULE = "no rule matched"


class HasModalities(Protocol):
    """What routing needs of an engine's card."""

    @property
    def modalities(self) -> Sequence[str]: ...


def seen(
    header: SeriesHeader, *, calling_ae: str | Sequence[str] = "", called_ae: str | Sequence[str] = ""
) -> Mapping[str, Values]:
    """What rules see of a series: its attributes, and what is no DICOM attribute.

    ``CallingAE`` and ``CalledAE`` are those of the associations that carried it, each once and without
    padding; where they are not known (a file on disk) they are absent. ``InstanceCount`` is the number of
    instances received.
    """
    values: dict[str, Values] = {"InstanceCount": (header.count,)}
    if header.modality:
        values["Modality"] = (header.modality,)
    if header.sop_class_uid:
        values["SOPClassUID"] = (header.sop_class_uid,)
    values.update(header.attributes)
    for keyword, told in (("CallingAE", calling_ae), ("CalledAE", called_ae)):
        titles = dict.fromkeys(t.strip(" ") for t in ((told,) if isinstance(told, str) else told))
        if any(titles):
            values[keyword] = tuple(filter(None, titles))
    return values


def decide(
    header: SeriesHeader,
    rules: Iterable[Rule],
    *,
    engines_cards: Mapping[str, HasModalities],
    ineligible: str,
    calling_ae: str | Sequence[str] = "",
    called_ae: str | Sequence[str] = "",
) -> Decision:
    """Apply the rules to a series.

    Parameters
    ----------
    header
        The series.
    rules
        In the order of config.yaml.
    engines_cards
        For entries of ``engines:`` in config.yaml, by name, the card of their engine. An entry that is not
        here (its engine is not installed) is not judged: its job will wait for a person.
    ineligible
        Why this series must never be enhanced, whatever a rule says; empty if it may be.
    calling_ae, called_ae
        AE titles of the association or associations, where there were any.

    Returns
    -------
    Decision
        ENHANCE, or IGNORE because a rule says so or none matched, or REJECT: a rule would enhance, but
        the series must not be or its engine is for another modality.
    """
    values = seen(header, calling_ae=calling_ae, called_ae=called_ae)
    verdicts: list[Verdict] = []
    for rule in rules:
        here = judge(rule, values)
        verdicts += here
        if all(verdict.held for verdict in here):
            return _decision(rule, header, tuple(verdicts), engines_cards, ineligible)
    return Decision(rule="", action=Action.IGNORE, reason=NO_RULE, verdicts=tuple(verdicts))


def judge(rule: Rule, values: Mapping[str, Values]) -> list[Verdict]:
    """The verdict of every condition of one rule; ``when: any`` has a single one that holds."""
    if not rule.when:
        return [Verdict(rule=rule.name, keyword="any", wanted="any", found="", held=True)]
    return [
        _verdict(rule.name, condition, values.get(keyword, ())) for keyword, condition in rule.when.items()
    ]


def _verdict(rule: str, condition: Condition, values: Values) -> Verdict:
    return Verdict(
        rule=rule,
        keyword=condition.keyword,
        wanted=str(condition),
        found=found_text(values),
        held=condition.holds(values),
    )


def found_text(values: Sequence[Scalar]) -> str:
    """Values for people: joined by the backslash of DICOM, printable, shortened; ``absent`` if none."""
    texts = [_number(v) if isinstance(v, float) else str(v).strip(" \0") for v in values]
    joined = "\\".join(text for text in texts if text)
    if not joined:
        return "absent"
    printable = "".join(c if c.isprintable() else "?" for c in joined[: MAX_FOUND + 1])
    return printable if len(printable) <= MAX_FOUND else f"{printable[: MAX_FOUND - 3]}..."


def _number(value: float) -> str:
    return f"{value:.10g}"


def _decision(
    rule: Rule,
    header: SeriesHeader,
    verdicts: tuple[Verdict, ...],
    engines_cards: Mapping[str, HasModalities],
    ineligible: str,
) -> Decision:
    if rule.enhance is None:
        return Decision(rule=rule.name, action=Action.IGNORE, reason="the rule ignores", verdicts=verdicts)
    reason = ineligible or _unfit(rule.enhance, header, engines_cards)
    return Decision(
        rule=rule.name,
        action=Action.REJECT if reason else Action.ENHANCE,
        reason=reason or "the rule's conditions all hold",
        engine=rule.enhance,
        destinations=rule.send_to,
        verdicts=verdicts,
    )


def _unfit(engine: str, header: SeriesHeader, engines_cards: Mapping[str, HasModalities]) -> str:
    """Why the engine is not for this series; empty if it is, or if its card is not known."""
    card = engines_cards.get(engine)
    if card is None or header.modality in card.modalities:
        return ""
    wanted = " and ".join(card.modalities)
    return f"engine {engine} is for {wanted}, the series is {header.modality or 'unknown'}"
