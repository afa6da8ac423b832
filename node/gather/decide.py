"""The decision about a series, as the node makes it and as ``luminode route`` explains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engines.base import Card
from node.config.schema import Config
from node.dicom.headers import merge
from node.dicom.modality import eligibility
from node.model import Action, Decision, InstanceHeader
from node.route import decide


def decide_series(
    headers: Sequence[InstanceHeader],
    config: Config,
    cards: Mapping[str, Card],
    *,
    calling_ae: str | Sequence[str] = "",
    called_ae: str | Sequence[str] = "",
    n_unreadable: int = 0,
) -> Decision:
    """Ask the rules about a series, given the headers of all of its instances that can be read.

    Parameters
    ----------
    headers
        Of every generation.
    cards
        Engine cards by catalogue name.
    calling_ae, called_ae
        Of the association, or of all that carried the series; empty for files.
    n_unreadable
        How many instances of the series are not among ``headers`` because they cannot be read. Without them
        a derived series would have holes that nobody sees, so there is none.
    """
    if not headers:
        return Decision(rule="", action=Action.REJECT, reason="no instance of it can be read")
    header = merge(headers)
    by_entry = {name: cards[entry.engine] for name, entry in config.engines.items() if entry.engine in cards}

    total = len(headers) + n_unreadable
    unread = f"{n_unreadable} of {total} instances: The header cannot be read." if n_unreadable else ""

    def decided(ineligible: str) -> Decision:
        return decide(
            header, config.rules, engines_cards=by_entry, ineligible=ineligible or unread,
            calling_ae=calling_ae, called_ae=called_ae,
        )  # fmt: skip

    first = decided(eligibility(header, headers, allow_vendor_denoised=False))
    entry = config.engines.get(first.engine)
    if first.action is Action.REJECT and entry is not None and entry.enhance_vendor_denoised:
        return decided(eligibility(header, headers, allow_vendor_denoised=True))
    if first.action is Action.ENHANCE and entry is not None and entry.engine not in cards:
        return Decision(
            rule=first.rule, action=Action.REJECT, verdicts=first.verdicts,
            reason=f"the engine {entry.engine} is not installed: `luminode check` tells why",
        )  # fmt: skip
    return first
