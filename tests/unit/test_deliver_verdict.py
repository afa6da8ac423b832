from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.deliver.backoff import ceiling_s, full_jitter_s
from node.deliver.breaker import Breaker, Circuit
from node.deliver.verdict import Attempt, Health, Next, Patience, Tries, duration, judge
from node.errors import AssociationRejected, InstanceRefused, NodeError, PeerUnreachable
from node.model import Outcome

PATIENCE = Patience(for_s=3 * 86400.0, first_s=5.0, at_most_s=900.0)
NOBODY = PeerUnreachable("nobody listens there")


def outcomes(*statuses: int) -> dict[str, Outcome]:
    found = {}
    for n, status in enumerate(statuses):
        done = status == 0 or status >> 12 == 0xB
        retryable = status == -1 or status >> 8 == 0xA7
        found[str(n)] = Outcome(sop_instance_uid=str(n), status=status, done=done, retryable=retryable)
    return found


def attempt(
    *statuses: int, n: int = 3, new: int = 0, error: NodeError | None = None, stopped: bool = False
) -> Attempt:
    return Attempt(
        n_instances=n, known=outcomes(*statuses), reported=len(statuses), newly_done=new, error=error,
        stopped=stopped,
    )  # fmt: skip


def judged(one: Attempt, *, age_s: float = 0.0) -> tuple[str, str]:
    verdict = judge(one, Tries(), PATIENCE, age_s=age_s, chance=0.5)
    return verdict.next.value, verdict.health.value


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (attempt(0, 0, 0, new=3), ("sent", "up")),
        (attempt(0, 0xB000, 0xB007, new=1), ("sent", "up")),
        (attempt(0, 0, 0, new=3, error=NOBODY), ("sent", "up")),  # lost after the last answer: all are there
        (attempt(error=NOBODY), ("retry", "down")),
        (attempt(error=AssociationRejected("1/1/7")), ("retry", "down")),
        (attempt(0, -1, new=1, error=NOBODY), ("retry", "up")),
        (attempt(-1, error=NOBODY), ("retry", "doubtful")),
        (attempt(0, 0xA700, 0, new=2), ("retry", "up")),
        (attempt(0xA700, 0xA700, 0xA700, error=InstanceRefused(0xA700, "full")), ("retry", "down")),
        (attempt(0, 0xC000, 0, new=2), ("retry", "up")),
        (attempt(0, new=1, stopped=True), ("release", "up")),
        (attempt(stopped=True), ("release", "unknown")),
        (attempt(0, 0, 0, new=1, stopped=True), ("sent", "up")),
    ],
)
def test_what_a_try_means(one: Attempt, said: tuple[str, str]) -> None:
    assert judged(one) == said


def test_refused_for_good_is_tried_three_times_and_then_a_persons() -> None:
    tries, told = Tries(), []
    for _ in range(3):
        verdict = judge(attempt(0, 0xC000, 0x0122, new=0), tries, PATIENCE, age_s=1, chance=0.5)
        tries = verdict.tries
        told.append(verdict.next)
    assert told == [Next.RETRY, Next.RETRY, Next.FAILED]
    assert "2 instances refused: 0122H" in verdict.failure
    assert "C000H" in verdict.failure
    assert "1 of 3 instances are there" in verdict.failure


def test_a_refusal_is_not_counted_while_others_are_still_to_be_tried() -> None:
    tries = Tries()
    for _ in range(10):
        verdict = judge(attempt(0xC000, -1, error=NOBODY), tries, PATIENCE, age_s=1, chance=0.5)
        assert verdict.next is Next.RETRY
        tries = verdict.tries
    assert tries.refusals == 0
    assert tries.failures == 10


def test_transient_trouble_is_given_up_after_the_configured_time_and_not_before() -> None:
    assert judged(attempt(error=NOBODY), age_s=3 * 86400.0)[0] == "retry"
    verdict = judge(attempt(error=NOBODY), Tries(failures=99), PATIENCE, age_s=3 * 86400.0 + 1, chance=0.5)
    assert verdict.next is Next.FAILED
    assert verdict.failure.startswith("given up after 3d: nobody listens there")


def test_progress_starts_the_pauses_anew() -> None:
    verdict = judge(attempt(0, -1, new=1, error=NOBODY), Tries(failures=20), PATIENCE, age_s=1, chance=1.0)
    assert verdict.tries.failures == 1
    assert verdict.pause_s == 5.0


@given(
    st.integers(1, 10_000),
    st.floats(0.1, 100),
    st.floats(100, 10_000),
    st.floats(0, 1, exclude_max=True),
)
def test_pauses_are_within_their_ceiling(failures: int, first: float, most: float, chance: float) -> None:
    ceiling = ceiling_s(failures, first_s=first, at_most_s=most)
    assert first <= ceiling <= most
    assert 0 <= full_jitter_s(failures, first_s=first, at_most_s=most, chance=chance) <= ceiling
    assert ceiling <= ceiling_s(failures + 1, first_s=first, at_most_s=most)


def test_pauses_double_from_five_seconds_to_a_quarter_of_an_hour() -> None:
    pauses = [ceiling_s(n, first_s=5, at_most_s=900) for n in range(1, 11)]
    assert pauses == [5, 10, 20, 40, 80, 160, 320, 640, 900, 900]


def test_a_breaker_opens_at_once_and_lets_one_try_through_when_its_time_comes() -> None:
    breaker = Breaker(first_s=5, at_most_s=900)
    assert breaker.circuit(0) is Circuit.CLOSED
    breaker = breaker.failed(100)
    assert [breaker.circuit(t) for t in (100, 104.9, 105)] == [Circuit.OPEN, Circuit.OPEN, Circuit.HALF_OPEN]
    breaker = breaker.failed(105)
    assert not breaker.allows(114.9)
    assert breaker.allows(115)
    assert breaker.down_for(200) == 100
    breaker = breaker.succeeded()
    assert breaker.circuit(115) is Circuit.CLOSED
    assert breaker.down_for(200) == 0


def test_a_week_of_outage_costs_a_try_in_a_quarter_of_an_hour() -> None:
    breaker, now, tries = Breaker(first_s=5, at_most_s=900), 0.0, 0
    while now < 7 * 86400:
        assert breaker.allows(now)
        breaker, tries = breaker.failed(now), tries + 1
        now = breaker.retry_at
    assert tries <= 7 * 96 + 8


@pytest.mark.parametrize(
    ("seconds", "told"), [(3 * 86400, "3d"), (7200, "2h"), (90, "90s"), (60, "1m"), (0.5, "0.5s")]
)
def test_durations_are_told_as_config_yaml_writes_them(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_health_is_said_of_the_destination_only_where_it_shows() -> None:
    assert judge(attempt(0, new=1), Tries(), PATIENCE, age_s=0, chance=0).health is Health.UP
