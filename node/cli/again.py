"""What the verbs that retry and cancel do to many records at once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from node.cli.common import out, visible
from node.errors import TransitionRefused
from node.model import Delivery, DeliveryState, JobState
from node.store import Store


def ended(store: Store, jobs: Sequence[int]) -> list[Delivery]:
    """Deliveries of what these jobs made before that have ended without being sent: making it anew sends nothing."""
    made = [derived for job in jobs if (derived := store.deliveries.derived_of_job(job)) is not None]
    over = (DeliveryState.CANCELLED, DeliveryState.FAILED)
    return [d for one in made for d in store.deliveries.list(over, derived_id=one.id)]


def tell_ended(deliveries: Sequence[Delivery]) -> None:
    """Say so, and how each is sent."""
    for d in deliveries:
        told = (
            f"delivery {d.id} to {d.destination} stays {d.state}: `luminode deliveries retry {d.id}` sends it"
        )
        out.print(visible(told), highlight=False)


def cancel_all(store: Store, number: int) -> int:
    """Cancel what is not done of a series; returns how many jobs and deliveries."""
    n = 0
    for job in store.jobs.list(series_id=number, limit=1000):
        if job.state not in (JobState.DONE, JobState.CANCELLED):
            store.jobs.cancel(job.id, datetime.now(UTC))
            n += 1
        derived = store.deliveries.derived_of_job(job.id)
        if derived is None:
            continue
        for d in store.deliveries.list(derived_id=derived.id):
            if d.state not in (DeliveryState.SENT, DeliveryState.COMMITTED, DeliveryState.CANCELLED):
                store.deliveries.cancel(d.id, datetime.now(UTC))
                n += 1
    return n


def retry_held(store: Store) -> tuple[int, int]:
    """Queue all that is HELD; (how many, how many could not be)."""
    n = refused = 0
    before: int | None = None
    while held := store.jobs.list([JobState.HELD], before_id=before):
        before = held[-1].id
        for job in held:
            try:
                store.jobs.retry(job.id, datetime.now(UTC))
                n += 1
            except TransitionRefused:
                refused += 1
    return n, refused
