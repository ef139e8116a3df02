"""Text from outside, such as IDs, names of files and messages of libraries, in messages."""

# Characters of a text that a message shows; the longest names of files on Linux have 255 bytes.
LIMIT = 400


def printable(text: str) -> str:
    r"""Return a text with an escape for each character that a terminal would not print as it is.

    These are control characters, such as newlines and the escape of terminal commands, and marks
    that change the direction of text.

    Example:
        >>> printable("seq1\t\x1b[2Kprotein \u03b1")
        'seq1\\t\\x1b[2Kprotein \u03b1'
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def shown(value: object, limit: int = LIMIT) -> str:
    r"""Return a value from outside as text for a message: printable, and its middle left out.

    Everything that a file or a user supplied goes through this function on its way into an error
    or a log message.

    Args:
        value: A text, a path, or an error of a library.
        limit: The maximum number of characters to show of the text.

    Example:
        >>> shown("seq1\n")
        'seq1\\n'
        >>> shown("M" * 5_000_000 + "K", limit=10)
        'MMMMM...MMMMK (5,000,001 characters)'
    """
    text = str(value)
    if len(text) <= limit:
        return printable(text)
    half = limit // 2
    return f"{printable(text[:half])}...{printable(text[-half:])} ({len(text):,} characters)"


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message; those of libraries may have many.

    Example:
        >>> first_line(ValueError("damaged\nsee the log"))
        'damaged'
    """
    return shown(str(error).partition("\n")[0]) or type(error).__name__


def quoted(value: object) -> str:
    """Return the `repr` of a value from outside for a message; see `shown`.

    Example:
        >>> print(quoted("seq1"), quoted(7))
        'seq1' 7
    """
    try:
        return shown(repr(value))
    except ValueError:
        # Of an int with more digits than Python converts.
        return f"a {type(value).__name__} that is too large to show"


def percent(share: float) -> str:
    """Return a share as text. Neither a little less than all nor a little more than nothing is.

    Example:
        >>> percent(0.99999), percent(0.25), percent(0.00001)
        ('99.99 %', '25.00 %', '0.01 %')
    """
    rounded = round(100 * share, 2)
    if share not in (0, 1):
        rounded = min(max(rounded, 0.01), 99.99)
    return f"{rounded:.2f} %"
