"""The errors of pyarrow, in the words of this package."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike

import pyarrow as pa

from virnucpro.files.places import is_uri, name_of
from virnucpro.text import first_line, shown


@contextmanager
def explain_errors(
    path: str | PathLike[str],
    describe: Callable[[str | PathLike[str], str], ValueError] | None = None,
) -> Iterator[None]:
    """Raise errors that name a file instead of those of pyarrow.

    Args:
        path: The file.
        describe: Makes the error, of the path and a reason. With it, a ValueError that is not one
            of pyarrow passes unchanged, since it names the file; without, it gets the path.

    Raises:
        ValueError: The file is damaged.
        MemoryError: It needs more memory than there is.
        OSError: It cannot be read.
    """
    make = describe or at_path
    # Plans are read from copies.
    is_remote, path = describe is None and is_uri(path), name_of(path)
    try:
        yield
    except MemoryError as error:
        raise MemoryError(f"{shown(path)}: {first_line(error)}") from error
    except pa.ArrowException as error:
        if type(error) is pa.ArrowException:
            # Of no other class if a thread cannot be started.
            raise OSError(f"{shown(path)}: cannot be read ({first_line(error)})") from error
        raise make(path, f"damaged: {first_line(error)}") from error
    except UnicodeDecodeError as error:
        raise make(path, f"damaged: {first_line(error)}") from error
    except ValueError as error:
        if describe is not None:
            raise
        raise at_path(path, shown(error)) from error
    except OSError as error:
        # pyarrow raises OSError, without a number, for files that are damaged; and for stores that
        # cannot be reached.
        if is_remote:
            raise OSError(f"{shown(path)}: cannot be read ({first_line(error)})") from error
        if error.errno is None:
            raise make(path, f"damaged: {first_line(error)}") from error
        raise type(error)(f"{shown(path)}: cannot be read ({shown(error.strerror)})") from error


def at_path(path: str | PathLike[str], reason: str) -> ValueError:
    """Return an error that names a file."""
    return ValueError(f"{shown(path)}: {reason}")
