"""Whether system calls can be counted and made to fail here: strace, and a kernel that lets it."""

from __future__ import annotations

import subprocess

import pytest

from tests.peers import needs


def needs_tracing() -> None:
    """Skip the test where strace is not installed, or may not trace (a container without SYS_PTRACE)."""
    needs("strace")
    told = subprocess.run(
        ["strace", "-f", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False
    )
    if told.returncode:
        pytest.skip(f"system calls cannot be traced here: {told.stderr.strip()[-200:]}")
