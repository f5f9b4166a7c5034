"""A command in a pseudo terminal, and what a person would see on its screen.

Gives `run_in_terminal`. The screen knows what the commands' output uses: line ends, the cursor up and in its line,
erasing, colours and styles; any other sequence is an error, for it would be garbage on somebody's terminal.
"""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

COLUMNS, LINES = 80, 24
SEQUENCE = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])")
LINK = re.compile(r"\x1b\]8;[^\x1b\x07]*(?:\x1b\\|\x07)")


@dataclass
class Screen:
    """Lines of text as wide as a terminal; all of them are kept, also those that have scrolled away."""

    columns: int = COLUMNS
    lines: list[list[str]] = field(default_factory=lambda: [[]])
    row: int = 0
    column: int = 0
    wrapped: int = 0  # lines that were longer than the terminal is wide

    def feed(self, text: str) -> None:
        """Show text, control sequences included."""
        place = 0
        while place < len(text):
            if text[place] == "\x1b":
                found = LINK.match(text, place) or SEQUENCE.match(text, place)
                assert found, f"not a sequence that the commands use: {text[place : place + 20]!r}"
                if found.re is SEQUENCE:
                    self._act(found[1], found[2])
                place = found.end()
                continue
            self._put(text[place])
            place += 1

    def text(self) -> str:
        """What is on the screen, without spaces at the ends of lines."""
        return "\n".join("".join(line).rstrip() for line in self.lines).rstrip("\n")

    def _act(self, values: str, action: str) -> None:
        number = int(values or 1) if values.isdigit() or not values else 0
        match action:
            case "A":
                self.row = max(0, self.row - number)
            case "K":
                del self.lines[self.row][0 if values == "2" else self.column :]
            case "m" | "h" | "l":  # colours and styles; the cursor shown or hidden
                pass
            case _:
                raise AssertionError(f"not a sequence that the commands use: {values}{action}")

    def _put(self, character: str) -> None:
        if character == "\n":
            self.row += 1
            self._reach()
        elif character == "\r":
            self.column = 0
        else:
            assert character.isprintable(), f"{character!r} reached the terminal"
            width = _width(character)
            if self.column + width > self.columns:
                self.row, self.column, self.wrapped = self.row + 1, 0, self.wrapped + 1
                self._reach()
            line = self.lines[self.row]
            line.extend(" " * (self.column + width - len(line)))
            line[self.column : self.column + width] = [character, *[""] * (width - 1)]
            self.column += width

    def _reach(self) -> None:
        while len(self.lines) <= self.row:
            self.lines.append([])


@dataclass
class Session:
    """A command's end: exit status, the screen as it was left, and looks at it on the way."""

    status: int
    screen: Screen
    raw: str
    looks: list[tuple[float, str]]  # seconds since the start, the screen's text

    @property
    def text(self) -> str:
        return self.screen.text()


def run_in_terminal(
    command: Sequence[str | Path],
    *,
    columns: int = COLUMNS,
    environment: Mapping[str, str | None] | None = None,
    folder: Path | None = None,
    timeout: float = 120,
    on_look: Callable[[str, int], None] = lambda text, pid: None,
) -> Session:
    """Run a command on a terminal of `columns` x 24; `on_look(text, pid)` sees the screen whenever it has changed.

    `environment` is added to that of this process; None takes a variable away.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, columns, 0, 0))
    base = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    base |= {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    for name, value in (environment or {}).items():
        base.pop(name, None)
        if value is not None:
            base[name] = value
    process = subprocess.Popen(
        list(map(str, command)), stdin=slave, stdout=slave, stderr=slave, env=base, cwd=folder, start_new_session=True
    )
    os.close(slave)
    screen, raw, pending, looks, started = Screen(columns), "", b"", [], time.monotonic()
    try:
        while True:
            if time.monotonic() - started > timeout:
                process.kill()
                raise AssertionError(f"still running after {timeout} s; the screen:\n{screen.text()}")
            if not select.select([master], [], [], 0.5)[0]:
                continue
            try:
                data = os.read(master, 1 << 16)
            except OSError:  # everybody has closed the terminal
                break
            if not data:
                break
            pending += data
            text = pending.decode("utf-8", "ignore")
            cut = _incomplete(text)
            text = text[: len(text) - cut]
            pending = pending[len(text.encode()) :]
            raw += text
            screen.feed(text)
            looks.append((time.monotonic() - started, screen.text()))
            on_look(looks[-1][1], process.pid)
    finally:
        os.close(master)
        if process.poll() is None:
            process.wait(timeout=20)
    return Session(process.returncode, screen, raw, looks)


def _incomplete(text: str) -> int:
    """How many characters at the end may be the start of a sequence whose rest has not come."""
    start = text.rfind("\x1b")
    return len(text) - start if start >= 0 and not (SEQUENCE.match(text, start) or LINK.match(text, start)) else 0


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
