"""The command `virnucpro`, also as `python -m virnucpro`."""

import sys


def main() -> None:
    """Run the command line, or say what to install for it."""
    try:
        from virnucpro.cli import app
    except ModuleNotFoundError as error:
        sys.exit(f"virnucpro: {error.name} is not installed: pip install 'virnucpro[cli]'")
    app(prog_name="virnucpro")


if __name__ == "__main__":
    main()
