"""Text that may be shown on a terminal whatever a file name holds, and streams whose faults cost nothing else."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING, Any, Final, TextIO

if TYPE_CHECKING:
    from rich.console import Console

LEAST_ROOM: Final = 20  # columns for text, however narrow a terminal is

# Control characters, and those that turn the direction of what follows: both can make a terminal show, or do, something
# else than the text says. Line breaks would let a name look like a line of ours.
_HIDDEN: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: str, *, lines: bool = False) -> str:
    """Return a text with its control characters written as escapes; ``lines`` keeps line breaks and tabs."""

    def shown(match: re.Match[str]) -> str:
        code = ord(match[0])
        if lines and match[0] in "\n\t":
            return match[0]
        return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"

    return _HIDDEN.sub(shown, text)


def broken_lines(text: str, console: Console, indent: int = 0) -> list[str]:
    """Break a text between words where a terminal would break it anywhere; a word stays in one piece, such as a path.

    Parameters
    ----------
    text : str
        Its own line breaks stay.
    console : Console
        Where it will be shown; a file or a pipe gets the lines as they are, so that they can be searched.
    indent : int
        Columns that are taken already.

    Returns
    -------
    list of str
        At least one.
    """
    lines = text.split("\n")
    if not console.is_terminal:
        return lines
    room = max(console.width - indent, LEAST_ROOM)
    wrap = textwrap.TextWrapper(room, break_long_words=False, break_on_hyphens=False, drop_whitespace=True)
    return [piece for line in lines for piece in (wrap.wrap(line) or [""])]


class LosingStream:
    """A text stream for what nobody need read: where it cannot be written, it is lost, and the work goes on.

    The reader of a pipe ends, a terminal goes away, a disk is full, the stream was never there.

    Parameters
    ----------
    stream : text stream or None
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written."""
        if self._stream is not None:
            try:
                self._stream.write(text)
            except (OSError, ValueError):  # ValueError: closed, or a character that it cannot show
                return 0
        return len(text)

    def flush(self) -> None:
        """Pass on what can be passed on."""
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                return

    def isatty(self) -> bool:
        """Return whether somebody may be looking."""
        try:
            return self._stream is not None and self._stream.isatty()
        except (OSError, ValueError):
            return False

    def __getattr__(self, name: str) -> Any:
        """Return anything else of the stream itself."""
        return getattr(self._stream, name)
