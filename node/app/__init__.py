"""Composition root: the one room that knows everybody; start and stop order, supervision."""
