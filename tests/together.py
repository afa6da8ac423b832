"""``python -m tests.together CONFIG N``: the supervisor of a node, with N receivers and no other role."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from node.app import supervise
from node.app.doors import Doors
from node.config.load import load


def main() -> int:
    """Supervise until SIGTERM; the spool must be there."""
    supervise._LONGEST_WAIT_S = 1.0  # a test that kills them sixty times is not to wait half an hour
    path, n = Path(sys.argv[1]), int(sys.argv[2])
    config = load(path, os.environ, files=False).config
    listen = config.node.listen
    kept = Path(config.store.spool) / "last-good.yaml"
    return supervise.Supervisor(
        path, ["receive"], last_good=kept, doors=Doors(listen.host, listen.port, n)
    ).run()


if __name__ == "__main__":
    sys.exit(main())
