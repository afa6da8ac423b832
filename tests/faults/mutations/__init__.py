"""One-line breaks: each must turn the test of its invariant red, or that test proves nothing.

Each module of this folder holds ``MUTATIONS`` for one part of the node, and may hold ``UNEXERCISED``: what nothing
attacks, or not wholly, and why. ``python -m tests.faults.mutate`` applies one after the other to a copy of the
checkout, runs the named test there, and expects it to fail.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """A one-line break.

    Attributes
    ----------
    invariant
        ``R1`` ... ``R60``.
    what
        The break in words: "the folder is not synced after the rename".
    file
        Of the product, relative to the checkout.
    old, new
        Text that stands in the file exactly once, and what replaces it.
    test
        Node id of the test that must fail.
    """

    invariant: str
    what: str
    file: str
    old: str
    new: str
    test: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unexercised:
    """A promise that nothing here attacks, or a part of it, and why: the honest row of docs/reliability.md."""

    invariant: str
    why: str
