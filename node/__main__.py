"""Entry point of the command ``luminode`` and of ``python -m node``."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    from node.cli import run

    run()


if __name__ == "__main__":
    main()
