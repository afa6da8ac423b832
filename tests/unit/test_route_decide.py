"""The first rule that matches decides, and every condition looked at is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.config.schema import Rule
from node.model import Action, SeriesHeader, Values
from node.route import MAX_FOUND, NO_RULE, decide, found_text


@dataclass(frozen=True)
class CardLike:
    modalities: tuple[str, ...]


CARDS = {"ct": CardLike(("CT",)), "mr": CardLike(("MR",)), "both": CardLike(("CT", "MR"))}


def header(modality: str = "CT", count: int = 60, **attributes: Values) -> SeriesHeader:
    return SeriesHeader(
        modality=modality,
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        shape=(count, 512, 512),
        spacing_mm=(1.0, 0.7, 0.7),
        count=count,
        attributes={"Modality": (modality,), **attributes},
    )


def rule(name: str, when: Any, engine: str = "") -> Rule:
    does = {"enhance": engine, "send_to": ["pacs"]} if engine else {"ignore": True}
    return Rule.model_validate({"name": name, "when": when, **does})


THIN = rule("thin", {"Modality": "CT", "SliceThickness": "at most 2", "ImageType": "not LOCALIZER"}, "ct")
REST = rule("rest", "any")


def test_the_first_match_wins() -> None:
    first, second = rule("first", {"Modality": "CT"}, "ct"), rule("second", {"Modality": "CT"}, "both")
    decision = decide(header(), [first, second, REST], engines_cards=CARDS, ineligible="")
    assert (decision.rule, decision.action, decision.engine, decision.destinations) == (
        "first",
        Action.ENHANCE,
        "ct",
        ("pacs",),
    )
    assert {verdict.rule for verdict in decision.verdicts} == {"first"}


def test_every_condition_of_every_rule_up_to_the_match_is_told() -> None:
    series = header(SliceThickness=(5.0,), ImageType=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    decision = decide(series, [THIN, REST, THIN], engines_cards=CARDS, ineligible="")
    told = [(v.rule, v.keyword, v.wanted, v.found, v.held) for v in decision.verdicts]
    assert told == [
        ("thin", "Modality", "CT", "CT", True),
        ("thin", "SliceThickness", "at most 2", "5", False),
        ("thin", "ImageType", "not LOCALIZER", "ORIGINAL\\PRIMARY\\LOCALIZER", False),
        ("rest", "any", "any", "", True),
    ]
    assert (decision.rule, decision.action) == ("rest", Action.IGNORE)


def test_without_a_match_it_is_ignored_and_says_so() -> None:
    decision = decide(header("MR"), [THIN], engines_cards=CARDS, ineligible="")
    assert (decision.rule, decision.action, decision.reason) == ("", Action.IGNORE, NO_RULE)
    assert len(decision.verdicts) == 3
    empty = decide(header(), [], engines_cards=CARDS, ineligible="a localizer")
    assert (empty.action, empty.reason, empty.verdicts) == (Action.IGNORE, NO_RULE, ())


def test_what_must_never_be_enhanced_is_rejected_with_its_reason() -> None:
    decision = decide(header(), [rule("all", "any", "ct")], engines_cards=CARDS, ineligible="a localizer")
    assert (decision.action, decision.reason, decision.rule) == (Action.REJECT, "a localizer", "all")


def test_an_ineligible_series_that_a_rule_ignores_is_ignored() -> None:
    decision = decide(header(), [REST], engines_cards=CARDS, ineligible="a localizer")
    assert (decision.action, decision.reason) == (Action.IGNORE, "the rule ignores")


def test_an_engine_for_another_modality_is_no_engine() -> None:
    decision = decide(header("MR"), [rule("all", "any", "ct")], engines_cards=CARDS, ineligible="")
    assert decision.action is Action.REJECT
    assert decision.reason == "engine ct is for CT, the series is MR"
    fits = decide(header("MR"), [rule("all", "any", "both")], engines_cards=CARDS, ineligible="")
    assert fits.action is Action.ENHANCE


def test_an_engine_without_a_card_here_is_not_judged() -> None:
    decision = decide(header("MR"), [rule("all", "any", "gone")], engines_cards=CARDS, ineligible="")
    assert decision.action is Action.ENHANCE


def test_what_is_no_dicom_attribute_can_be_asked_for() -> None:
    asks = rule("who", {"CallingAE": "CT1", "CalledAE": "not OTHER", "InstanceCount": "at least 3"}, "ct")
    known = decide(
        header(), [asks], engines_cards=CARDS, ineligible="", calling_ae="CT1 ", called_ae="LUMINODE"
    )
    assert known.action is Action.ENHANCE
    assert [v.found for v in known.verdicts] == ["CT1", "LUMINODE", "60"]
    unknown = decide(header(), [asks], engines_cards=CARDS, ineligible="")
    assert unknown.action is Action.IGNORE
    assert [v.found for v in unknown.verdicts] == ["absent", "absent", "60"]
    few = decide(header(count=2), [asks], engines_cards=CARDS, ineligible="", calling_ae="CT1")
    assert few.action is Action.IGNORE


def test_an_attribute_of_the_data_set_cannot_pose_as_the_association() -> None:
    series = header(CallingAE=("CT1",))
    asks = rule("who", {"CallingAE": "CT1"}, "ct")
    other = decide(series, [asks], engines_cards=CARDS, ineligible="", calling_ae="EVIL")
    assert other.action is Action.IGNORE


def test_the_header_fills_in_what_its_attributes_leave_out() -> None:
    bare = SeriesHeader(
        modality="CT",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        shape=(1, 1, 1),
        spacing_mm=(0, 1, 1),
        count=1,
        attributes={},
    )
    asks = rule("class", {"Modality": "CT", "SOPClassUID": "CTImageStorage"}, "ct")
    assert decide(bare, [asks], engines_cards=CARDS, ineligible="").action is Action.ENHANCE


@pytest.mark.parametrize(
    ("values", "text"),
    [((), "absent"), (("",), "absent"), (("A", "B "), "A\\B"), ((1.25, 2), "1.25\\2"), (("a\nb",), "a?b")],
)
def test_what_was_found_is_told_on_one_line(values: Values, text: str) -> None:
    assert found_text(values) == text


def test_what_was_found_is_told_shortly() -> None:
    assert len(found_text(tuple(str(n) for n in range(5000)))) == MAX_FOUND


_RULES = st.lists(
    st.builds(
        rule,
        st.sampled_from("abc"),
        st.one_of(
            st.just("any"),
            st.dictionaries(
                st.sampled_from(["Modality", "BodyPartExamined", "ImageType"]),
                st.sampled_from(["CT", "not CT", "present", "absent", ["CT", "CHEST"], "contains C"]),
                min_size=1,
            ),
        ),
        st.sampled_from(["", "ct", "mr"]),
    ),
    max_size=4,
)
_VALUES = st.lists(st.sampled_from(["CT", "MR", "CHEST", ""]), max_size=2).map(tuple)


@settings(max_examples=200, deadline=None)
@given(_RULES, _VALUES, _VALUES, st.sampled_from(["", "a localizer"]))
def test_laws(rules: list[Rule], body: Values, image_type: Values, ineligible: str) -> None:
    series = header(BodyPartExamined=body, ImageType=image_type)
    decision = decide(series, rules, engines_cards=CARDS, ineligible=ineligible)
    assert decision == decide(series, rules, engines_cards=CARDS, ineligible=ineligible)
    if ineligible:
        assert decision.action is not Action.ENHANCE
    matched = [r for r in rules if all(c.holds(series.attributes.get(k, ())) for k, c in r.when.items())]
    assert bool(matched) == bool(decision.rule)
    looked_at = rules if not matched else rules[: next(n for n, r in enumerate(rules) if r is matched[0]) + 1]
    assert len(decision.verdicts) == sum(len(r.when) or 1 for r in looked_at)
    if matched:
        assert decision.rule == matched[0].name
        assert (decision.action is Action.IGNORE) == (matched[0].enhance is None)
