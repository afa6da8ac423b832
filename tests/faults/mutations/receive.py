"""What breaks R1-R13: the way from the socket to the spool and the database."""

from __future__ import annotations

from tests.faults.mutations import Mutation

_COMMIT = "node/receive/commit.py"
_SPOOL = "node/store/spool.py"
_LANDING = "node/store/landing.py"
_RECEIVING = "tests/faults/test_receiving.py"
_LATE = "tests/faults/test_order_and_lateness.py"
_RESTARTS = "tests/faults/test_restarts.py"
_CUTS = "tests/faults/test_power_loss.py::test_what_was_acknowledged_survives_a_power_cut_at_any_moment"

_COMMITMENTS = "node/deliver/commitments.py"
_ROTTEN = (
    "tests/faults/test_commitment.py::test_rotten_bytes_are_never_committed_and_the_result_outlives_everybody"
)

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        invariant="R1",
        what="0000H is answered before the instance is stored",
        file="node/receive/messages.py",
        old="            self._answer(context_id, message.command, self._store(message))\n",
        new="            self._answer(context_id, message.command, message.refused)\n"
        "            self._store(message)\n",
        test="tests/faults/test_crash_points.py::"
        "test_whatever_the_crash_point_all_that_was_acknowledged_comes_out_once",
    ),
    Mutation(
        invariant="R2",
        what="the bytes of a file are not synced",
        file=_SPOOL,
        old="            os.fdatasync(self._fd)\n",
        new="            pass\n",
        test=_CUTS,
    ),
    Mutation(
        invariant="R2",
        what="first names are taken away before the final ones are durable",
        file=_SPOOL,
        old="                sync_folder(self._root + folder)\n",
        new="",
        test=_CUTS,
    ),
    Mutation(
        invariant="R2",
        what="names that were made ahead are not synced",
        file=_LANDING,
        old="            sync_folder(self._folder)\n",
        new="",
        test=_CUTS,
    ),
    Mutation(
        invariant="R2",
        what="what landed whole does not get its name back",
        file="node/store/sweep.py",
        old="    elif name and is_whole(fd):\n",
        new="    elif False:\n",
        test=_CUTS,
    ),
    Mutation(
        invariant="R2",
        what="a file is not sealed before it is synced",
        file=_SPOOL,
        old="                os.pwrite(self._fd, seal(",
        new="                os.pread(self._fd, 1, 0) or (seal(",
        test=_CUTS,
    ),
    Mutation(
        invariant="R2",
        what="a new folder's own name is not synced",
        file=_SPOOL,
        old="                    sync_folder((self.root / folder).parent)\n",
        new="",
        test=_CUTS,
    ),
    Mutation(
        invariant="R2",
        what="synchronous=NORMAL",
        file="node/store/db.py",
        old='cursor.execute("PRAGMA synchronous=FULL")',
        new='cursor.execute("PRAGMA synchronous=NORMAL")',
        test=_CUTS,
    ),
    Mutation(
        invariant="R2",
        what="a first name is taken away on the word of a sync that failed before",
        file=_LANDING,
        old="            self._stranded += [self._landed.popleft() for _ in batch]\n",
        new="",
        test="tests/contract/test_store_landing.py::test_a_folder_that_could_not_be_synced_keeps_its_first_names",
    ),
    Mutation(
        invariant="R3",
        what="a sync that failed is tried again on the same file",
        file=_SPOOL,
        old='            raise disk_error(error, "sync") from None\n',
        new="            os.fdatasync(self._fd)\n",
        test="tests/faults/test_disk_errors.py::test_whatever_the_disk_refuses_nobody_is_told_that_it_is_stored",
    ),
    Mutation(
        invariant="R3",
        what="a folder that could not be synced is passed over",
        file=_SPOOL,
        old='            raise disk_error(error, "sync of a folder") from None\n',
        new="            return\n",
        test="tests/faults/test_disk_errors.py::test_whatever_the_disk_refuses_nobody_is_told_that_it_is_stored",
    ),
    Mutation(
        invariant="R4",
        what="a defect of ours is told as a lack of resources",
        file="node/receive/intake.py",
        old="    return Refusal(*DEFECT)  # a defect of ours\n",
        new="    return Refusal(*STORE)\n",
        test=f"{_RECEIVING}::test_every_way_to_fail_has_its_status",
    ),
    Mutation(
        invariant="R5",
        what="what a cut association had begun is left under tmp",
        file="node/receive/door.py",
        old="        messages.discard()\n",
        new="        pass\n",
        test=f"{_RECEIVING}::test_wherever_the_stream_is_cut_what_was_answered_stays_and_nothing_of_the_rest",
    ),
    Mutation(
        invariant="R6",
        what="every file says that it is Explicit VR Little Endian",
        file="node/receive/intake.py",
        old="part10.head(command.sop_class_uid, command.sop_instance_uid, transfer_syntax_uid)",
        new='part10.head(command.sop_class_uid, command.sop_instance_uid, "1.2.840.10008.1.2.1")',
        test=f"{_RECEIVING}::test_stored_bytes_are_sent_bytes",
    ),
    Mutation(
        invariant="R7",
        what="the same bytes again count as other bytes",
        file="node/store/reception.py",
        old="        if known.sha256 == one.sha256:\n",
        new="        if known.sha256 == one.sha256 and known.id < 0:\n",
        test=f"{_RECEIVING}::test_a_duplicate_is_harmless_in_sequence_and_at_once",
    ),
    Mutation(
        invariant="R8",
        what="slices are stacked in the order of their arrival",
        file="node/dicom/volumes.py",
        old="    ordered = sorted(group, key=lambda p: (p.at_mm, p.uid, p.number))\n",
        new="    ordered = list(group)\n",
        test=f"{_LATE}::test_the_order_of_arrival_changes_nothing",
    ),
    Mutation(
        invariant="R9",
        what="nobody is told of a generation that came late",
        file="node/store/series.py",
        old="                _tell_if_late(connection, series_id, at)\n",
        new="",
        test=f"{_LATE}::test_what_comes_late_is_never_dropped_nor_silently_mixed",
    ),
    Mutation(
        invariant="R9",
        what="what was derived already is derived again with what came late",
        file="node/enhance/work.py",
        old="headers.keys() - _made_by_others(store, derived_series_uid, job.id)",
        new="headers.keys() - set()",
        test=f"{_LATE}::test_what_comes_late_is_never_dropped_nor_silently_mixed",
    ),
    Mutation(
        invariant="R10",
        what="the time in which the node was away counts as silence of the scanner",
        file="node/gather/complete.py",
        old="signs = [view.last_received_at, *([view.awake_since] if view.awake_since is not None else [])]",
        new="signs = [view.last_received_at]",
        test=f"{_RESTARTS}::test_a_restart_in_mid_series_loses_neither_count_nor_timer",
    ),
    Mutation(
        invariant="R11",
        what="SIGTERM is not heard",
        file="node/process.py",
        old="                    stop.set()\n",
        new="                    pass\n",
        test=f"{_RESTARTS}::test_a_stop_under_load_drains",
    ),
    Mutation(
        invariant="R11",
        what="the handler of a signal takes a lock",
        file="node/process.py",
        old="        return\n\n    def listen() -> None:\n",
        new="        stop.set()\n\n    def listen() -> None:\n",
        test=f"{_RESTARTS}::test_a_stop_that_comes_at_the_worst_moment_is_heard",
    ),
    Mutation(
        invariant="R13",
        what="the engine takes bytes with another digest",
        file="node/enhance/scratch.py",
        old="        if digest != self.sha256:\n",
        new="        if not digest and self.sha256:\n",
        test="tests/faults/test_bit_rot.py::test_rotten_bytes_are_never_processed",
    ),
    Mutation(
        invariant="R13",
        what="the sender takes bytes with another digest",
        file="node/deliver/parcel.py",
        old="        if digest != parcel.sha256:\n",
        new="        if not digest and parcel.sha256:\n",
        test="tests/faults/test_bit_rot.py::test_rotten_bytes_are_never_sent",
    ),
    Mutation(
        invariant="R12",
        what="an instance is committed without a look at its bytes",
        file=_COMMITMENTS,
        old="            elif not self._store.spool.verify(found.path, found.offset, found.sha256):\n",
        new="            elif not found.path:\n",
        test=_ROTTEN,
    ),
    Mutation(
        invariant="R12",
        what="a scanner that cannot be reached counts as told",
        file=_COMMITMENTS,
        old="            commitments.later(one, self._owner, until, error.message, tried=True)\n",
        new="            commitments.told(one.id, self._owner, until)\n",
        test=_ROTTEN,
    ),
    Mutation(
        invariant="R12",
        what="an instance that PACS does not have yet is committed as delivered",
        file="node/store/commitments.py",
        old="    if of.missing == 0:\n",
        new="    if of.missing >= 0:\n",
        test="tests/conformance/test_commitment.py::test_what_is_delivered_is_committed_when_pacs_has_it",
    ),
    Mutation(
        invariant="R12",
        what="an instance counts as delivered when PACS has any other of its series",
        file="node/store/commitments.py",
        old="        .correlate(DeliveryRow, InstanceRow)  # else it asks for any instance of the delivery\n",
        new="",
        test="tests/conformance/test_commitment.py::test_what_pacs_has_of_a_series_says_nothing_of_the_rest",
    ),
    Mutation(
        invariant="R12",
        what="a result is told however old it is",
        file="node/store/commitments.py",
        old="        if one.ready_at is not None and abs(now - one.ready_at) <= _FRESH:  # two hosts, two clocks\n",
        new="        if one.ready_at is not None:\n",
        test="tests/conformance/test_commitment.py::test_a_result_that_got_old_is_not_told_before_a_new_look",
    ),
    Mutation(
        invariant="R12",
        what="a request is answered 0000H and not written down",
        file="node/receive/commitment.py",
        old="            self._take(request, authorized=authorized)\n",
        new="",
        test="tests/faults/test_commitment.py::"
        "test_whatever_the_crash_point_a_request_that_was_taken_is_answered_rightly",
    ),
)
