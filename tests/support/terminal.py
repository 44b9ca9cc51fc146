"""A terminal: runs a program in one, keeps every screen that it drew, and shows one as a page."""

from __future__ import annotations

import fcntl
import html
import os
import pty
import re
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

SEQUENCE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|\x1b\]8;[^\x1b\x07]*(?:\x1b\\|\x07)")
COLOURS = {
    "30": "#20242b", "31": "#e06c66", "32": "#8fbf6f", "33": "#d9b25f", "34": "#6fa8dc", "35": "#c586c0",
    "36": "#62b8b8", "37": "#d8dbe0", "90": "#7d8590", "91": "#ff8f88", "92": "#a9d98a", "93": "#f0cc7a",
    "94": "#8fc1f0", "95": "#dba0d6", "96": "#84d2d2", "97": "#ffffff",
}  # fmt: skip
INDEXED = {"237": "#3a3f47", "197": "#e0507a", "106": "#8fbf3f", "70": "#5faf3f"}
"""Of the 256 colours those that bars have."""


class Screen:
    """Text with styles, row by row; knows as much of a terminal as progress bars and tables ask of one."""

    def __init__(self, columns: int) -> None:
        self.columns, self.row, self.column, self.style = columns, 0, 0, ""
        self.cells: list[list[tuple[str, str]]] = [[]]

    def write(self, text: str) -> None:
        at = 0
        while at < len(text):
            found = SEQUENCE.match(text, at)
            if found:
                self._sequence(found[1] or "", found[2] or "")
                at = found.end()
                continue
            self._character(text[at])
            at += 1

    def _character(self, character: str) -> None:
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self._move_down()
        elif character >= " ":
            if self.column == self.columns:  # the terminal breaks what does not fit
                self.column = 0
                self._move_down()
            row = self.cells[self.row]
            row += [(" ", "")] * (self.column + 1 - len(row))
            row[self.column] = (character, self.style)
            self.column += 1

    def _move_down(self) -> None:
        self.row += 1
        if self.row == len(self.cells):
            self.cells.append([])

    def _sequence(self, numbers: str, kind: str) -> None:
        if kind == "A":
            self.row = max(0, self.row - int(numbers or 1))
        elif kind == "K":
            self.cells[self.row] = [] if numbers == "2" else self.cells[self.row][: self.column]
        elif kind == "m":
            self.style = "" if numbers in ("", "0") else f"{self.style};{numbers}".strip(";")

    @property
    def lines(self) -> list[str]:
        """The rows as text."""
        return ["".join(character for character, _ in row).rstrip() for row in self.cells]

    def as_page(self, *, title: str = "") -> str:
        """The screen as HTML."""
        rows = []
        for row in self.cells:
            parts = [
                f"<span style='{_css(style)}'>{html.escape(c)}</span>" if style else html.escape(c) for c, style in row
            ]
            rows.append("".join(parts).rstrip())
        while rows and not rows[-1]:
            rows.pop()
        body = "\n".join(rows)
        return (
            "<!doctype html><meta charset=utf-8><link rel=icon href='data:,'><style>body{margin:0;background:#16181d}"
            f"pre{{margin:0;padding:12px 14px;width:calc({self.columns}ch + 28px);box-sizing:border-box;color:#d8dbe0;"
            "font:13px/1.25 'DejaVu Sans Mono',monospace;white-space:pre}</style>"
            f"<title>{title}</title><pre>{body}</pre>"
        )


def _css(style: str) -> str:
    codes, css, at = style.split(";"), [], 0
    while at < len(codes):
        code = codes[at]
        if code in ("38", "48") and codes[at + 1 : at + 2] == ["5"]:
            css.append(f"color:{INDEXED.get(codes[at + 2], '#d8dbe0')}")
            at += 3
            continue
        if code in ("38", "48") and codes[at + 1 : at + 2] == ["2"]:
            css.append(f"color:rgb({','.join(codes[at + 2 : at + 5])})")
            at += 5
            continue
        css += {"1": ["font-weight:700"], "2": ["opacity:.6"], "3": ["font-style:italic"]}.get(code, [])
        css += [f"color:{COLOURS[code]}"] if code in COLOURS else []
        at += 1
    return ";".join(css)


class Played(NamedTuple):
    screens: list[Screen]  # one after each piece of output
    status: int

    @property
    def last(self) -> Screen:
        return self.screens[-1]


def play(
    command: Sequence[str],
    columns: int,
    *,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    typed: str = "",
    patience: float = 120.0,
) -> Played:
    """Run a program in a terminal of so many columns; ``typed`` stands as a prompt above what it says."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 60, columns, 0, 0))
    variables = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), **(environment or {})}
    process = subprocess.Popen(
        list(command), cwd=cwd, env=variables, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    text = f"$ {typed}\r\n" if typed else ""
    screens, until = [], time.monotonic() + patience
    try:
        while time.monotonic() < until:
            try:
                piece = os.read(master, 1 << 16)
            except OSError:  # nobody has the terminal open any more
                break
            if not piece:
                break
            text += piece.decode(errors="replace")
            screen = Screen(columns)
            screen.write(text)
            screens.append(screen)
        status = process.wait(max(1.0, until - time.monotonic()))
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(master)
    return Played(screens, status)
