"""The `virnucpro` command, also run as `python -m virnucpro`."""

import sys

from virnucpro.extras import needing


def main() -> None:
    """Run the command line, or name the extra to install."""
    try:
        with needing("the command line", "cli"):
            from virnucpro.cli import app
    except ModuleNotFoundError as error:
        sys.exit(f"virnucpro: {error}")
    app(prog_name="virnucpro")


if __name__ == "__main__":
    main()
