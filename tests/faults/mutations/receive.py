"""What breaks R1-R13: the way from the socket to the spool and the database."""

from __future__ import annotations

from tests.faults.mutations import Mutation, Unexercised

_COMMIT = "node/receive/commit.py"
_SPOOL = "node/store/spool.py"
_CUTS = "tests/faults/test_power_loss.py::test_what_was_acknowledged_survives_a_power_cut_at_any_moment"

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
        what="the folder is not synced after the rename",
        file=_SPOOL,
        old="                sync_folder(self.root / folder)\n",
        new="",
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
)

UNEXERCISED: tuple[Unexercised, ...] = (
    Unexercised(
        invariant="R12",
        why="storage commitment is not offered to scanners: the node refuses the presentation context.",
    ),
)
