"""What breaks R29-R37 and R48, and R1 and R58 for originals: the way from the outbox to the PACS."""

from __future__ import annotations

from tests.faults.mutations import Mutation, Unexercised

_OUTAGE = "tests/faults/test_delivery_outage.py"
_FROZEN = "tests/faults/test_delivery_frozen.py"
_ANSWERS = "tests/faults/test_delivery_answers.py"
_ORIGINALS = "tests/faults/test_delivery_originals.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        invariant="R29",
        what="a delivery is given up after half a day",
        file="node/config/schema.py",
        old='        default=None,\n        alias="for",',
        new='        default=43200.0,\n        alias="for",',
        test=f"{_OUTAGE}::test_a_week_without_a_pacs_loses_nothing_and_needs_no_hand",
    ),
    Mutation(
        invariant="R29",
        what="what waits for a place that is away is put off one by one",
        file="node/deliver/lane.py",
        old="                store.postpone(self.name, it.settings, way.known.reopens(self._clock))",
        new="                pass",
        test=f"{_OUTAGE}::test_a_queue_that_is_put_off_keeps_what_goes_to_another_address",
    ),
    Mutation(
        invariant="R30",
        what="an association on which an answer did not come stays open",
        file="node/deliver/sender.py",
        old="            self._wire.close(drop=True)",
        new="            pass",
        test=f"{_FROZEN}::test_a_pacs_frozen_at_any_point_is_left_in_bounded_time_and_gets_the_rest_when_it_wakes",
    ),
    Mutation(
        invariant="R31",
        what="the deadline of an object does not grow with its size",
        file="node/deliver/sender.py",
        old="deadline = start + self._peer.timeout_s + body.size / SLOWEST_RATE",
        new="deadline = start + self._peer.timeout_s",
        test=f"{_FROZEN}::test_a_slow_pacs_is_used_and_one_below_the_floor_is_tried_again",
    ),
    Mutation(
        invariant="R31",
        what="the kernel ends a connection whose window stays small, though the peer takes bytes all the time",
        file="node/deliver/wire.py",
        old="    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)",
        new="    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)\n"
        "    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 2500)",
        test=f"{_FROZEN}::test_a_slow_pacs_is_used_and_one_below_the_floor_is_tried_again",
    ),
    Mutation(
        invariant="R32",
        what="an instance that is refused for good is tried four times",
        file="node/deliver/verdict.py",
        old="REFUSALS = 3",
        new="REFUSALS = 4",
        test=f"{_ANSWERS}::test_every_answer_has_its_outcome",
    ),
    Mutation(
        invariant="R33",
        what="an instance whose answer was lost is not sent again",
        file="node/deliver/lane.py",
        old="done = frozenset(uid for uid, o in outcomes.items() if o.done)",
        new="done = frozenset(outcomes)",
        test=f"{_ANSWERS}::test_lost_answers_are_sent_again_never_skipped_never_failed",
    ),
    Mutation(
        invariant="R34",
        what="what was sent is put on record at the end of a series only",
        file="node/deliver/recorder.py",
        old="return not batch or deliveries.record_outcomes(it.id, self._owner, it.attempt, batch)",
        new="return True",
        test=f"{_ANSWERS}::test_a_sender_killed_again_and_again_goes_on_where_it_was",
    ),
    Mutation(
        invariant="R35",
        what="one thread serves all destinations, one after the other",
        file="node/deliver/deliverer.py",
        old="                lane.start()\n            lane.wake()",
        new="            lane.step()",
        test=f"{_OUTAGE}::test_one_destinations_trouble_is_not_anothers",
    ),
    Mutation(
        invariant="R36",
        what="no answer counts as stored",
        file="node/deliver/destination.py",
        old="status=NO_ANSWER, done=False, retryable=True",
        new="status=NO_ANSWER, done=True, retryable=True",
        test=f"{_ANSWERS}::test_nothing_is_sent_before_all_of_it_is_confirmed",
    ),
    Mutation(
        invariant="R37",
        what="queued work goes where the newest work of that name goes",
        file="node/deliver/lane.py",
        old="settings = settings_of(delivery.settings)",
        new="settings = settings_of(store.deliveries.list(destination=self.name, limit=1)[0].settings)",
        test=f"{_OUTAGE}::test_work_in_the_queue_keeps_its_destination_whatever_becomes_of_the_configuration",
    ),
    Mutation(
        invariant="R48",
        what="originals wait for the end of their series",
        file="node/store/originals.py",
        old="return or_(untried, and_(undone, OutcomeRow.retryable)) if growing",
        new="return and_(untried, undone) if growing",
        test=f"{_ORIGINALS}::test_originals_are_never_gated",
    ),
    Mutation(
        invariant="R1",
        what="an instance is recorded without being queued for its destinations",
        file="node/store/reception.py",
        old="                originals.queue(connection, took, forward)",
        new="                assert took",
        test=f"{_ORIGINALS}::test_kill_9_of_the_whole_node_loses_no_original",
    ),
    Mutation(
        invariant="R58",
        what="a series is removed although its originals were not sent",
        file="node/store/retention.py",
        old="                originals.unsent(any_generation.id, _SENT),\n",
        new="",
        test="tests/contract/test_store_originals.py::test_nothing_is_removed_before_its_originals_are_sent",
    ),
    Mutation(
        invariant="R12",
        what="what a PACS does not mention counts as committed",
        file="node/store/pledges.py",
        old="if uid not in told.committed or uid in told.failed",
        new="if uid in told.failed",
        test="tests/contract/test_store_pledges.py::test_what_is_missing_there_is_sent_again_alone",
    ),
    Mutation(
        invariant="R12",
        what="a request to a PACS is made under a Transaction UID that is not on record",
        file="node/store/pledges.py",
        old="transaction_uid=transaction_uid, delivery_id=delivery_id, at=now",
        new='transaction_uid=transaction_uid + ".0", delivery_id=delivery_id, at=now',
        test="tests/conformance/test_deliver_commit.py::"
        "test_a_pacs_that_calls_back_is_heard_though_no_scanner_is_listed_by_its_title",
    ),
    Mutation(
        invariant="R12",
        what="files are removed while their PACS has not answered whether it holds them",
        file="node/store/retention.py",
        old="""    unsent = exists().where(
        DeliveryRow.derived_id == DerivedRow.id,
        or_(DeliveryRow.state.not_in(_SENT), pledges.awaited()),""",
        new="""    unsent = exists().where(
        DeliveryRow.derived_id == DerivedRow.id,
        DeliveryRow.state.not_in(_SENT),""",
        test="tests/contract/test_store_pledges.py::test_nothing_is_removed_before_its_destination_has_answered",
    ),
)

UNEXERCISED: tuple[Unexercised, ...] = (
    Unexercised(
        invariant="R32",
        why="the statuses of STOW-RS: destinations of the kind dicomweb are not built; `config.yaml` that names one is"
        " refused.",
    ),
    Unexercised(
        invariant="R48",
        why="a GPU that is gone: that engines hang is exercised with frozen processes, on a machine without a GPU.",
    ),
)
