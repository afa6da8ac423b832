"""Derived series on their way out: kinds of destination, and the loop that sees each delivery through."""
