"""What breaks R1-R13: the way from the socket to the spool and the database."""

from __future__ import annotations

from tests.faults.mutations import Mutation, Unexercised

_COMMIT = "node/receive/commit.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        invariant="R1",
        what="0000H is answered while the commit is still under way",
        file=_COMMIT,
        old="            self._lead(ticket)\n",
        new="            threading.Thread(target=self._lead, args=(ticket,)).start()\n"
        '            return Recorded(kind="new", series_id=0)\n',
        test="tests/faults/test_crash_points.py::"
        "test_whatever_the_crash_point_all_that_was_acknowledged_comes_out_once",
    ),
)

UNEXERCISED: tuple[Unexercised, ...] = (
    Unexercised(
        invariant="R12",
        why="storage commitment is not offered to scanners: the node refuses the presentation context.",
    ),
)
