"""The invariants R1-R60, each with the test that can break it; see docs/reliability.md.

What is here runs in ``make test`` with small counts and in ``make faults`` with full ones (:func:`scale.count`). Every
test tells the ledger what it did. Every invariant has a mutation: a one-line break that must turn its test red.
"""
