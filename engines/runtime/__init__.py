"""Runtimes of learned engines; each is imported where it is needed, never before."""
