"""Text from outside, such as IDs and names of files, in messages."""


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
