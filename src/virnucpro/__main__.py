"""The command `virnucpro`, also as `python -m virnucpro`."""

import sys

from virnucpro.extras import needing


def main() -> None:
    """Run the command line, or say what to install for it."""
    try:
        with needing("the command line", "cli"):
            from virnucpro.cli import app
    except ModuleNotFoundError as error:
        sys.exit(f"virnucpro: {error}")
    app(prog_name="virnucpro")


if __name__ == "__main__":
    main()
