"""Entry point of the command ``luminode`` and of ``python -m node``."""

from __future__ import annotations

import gc


def main() -> None:
    """Run the command line."""
    gc.disable()  # nothing that an import makes is garbage: looking for some takes a third of its time
    from node.cli import run
    from node.log import tell_defects_without_values

    tell_defects_without_values()
    gc.freeze()
    gc.enable()
    run()


if __name__ == "__main__":
    main()
