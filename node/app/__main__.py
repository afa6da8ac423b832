"""One role in a process of its own: ``python -m node.app ROLE CONFIG LAST_GOOD``, as the supervisor does.

It goes round the command line, so that a role loads only what it needs.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from node.errors import ConfigError, NodeError
from node.log import get_logger, tell_defects_without_values


def main() -> int:
    """Run the role that the arguments name."""
    tell_defects_without_values()
    role, config, last_good = sys.argv[1:4]
    return live(role, Path(config), Path(last_good))


def live(role: str, config: Path, last_good: Path) -> int:
    """Run a role as its supervisor wants it; typed errors become a log line and an exit status."""
    gc.disable()  # while importing, as in node/__main__.py
    from node.app.roles import run_role

    gc.freeze()
    gc.enable()
    try:
        return run_role(role, config, last_good=last_good)
    except ConfigError as e:
        for fault in e.faults:
            get_logger().error("config.refused", told=str(fault))
        return e.exit_status
    except NodeError as e:
        get_logger().error("role.failed", role=role, because=type(e).__name__, told=e.message, hint=e.hint)
        return 1


if __name__ == "__main__":
    sys.exit(main())
