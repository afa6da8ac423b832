"""What breaks R1-R13: the way from the socket to the spool and the database."""

from __future__ import annotations

from tests.faults.mutations import Mutation, Unexercised

MUTATIONS: tuple[Mutation, ...] = ()

UNEXERCISED: tuple[Unexercised, ...] = (
    Unexercised(
        invariant="R12",
        why="storage commitment is not offered to scanners: the node refuses the presentation context.",
    ),
)
