"""Formats values for people: durations, sizes, counts with a noun, errors."""

import math

SIZES = ("bytes", "kB", "MB", "GB", "TB")


def duration(seconds: float) -> str:
    """A duration in seconds, minutes or hours: 18 s, 4 min, 3.2 h."""
    if seconds < 90:
        return f"{seconds:.2g} s" if 0 < seconds < 1 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 100 else f"{hours:,.0f} h"


def size(num_bytes: float) -> str:
    """A number of bytes in decimal units, as disks and the Hub use them: 812 kB, 6.0 GB."""
    if num_bytes < 1000:
        return f"{num_bytes:.0f} bytes"
    power = min(len(SIZES) - 1, int(math.log10(num_bytes) / 3))
    value = num_bytes / 1000**power
    return f"{value:.1f} {SIZES[power]}" if value < 100 else f"{value:.0f} {SIZES[power]}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or else its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def count(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: 1 line, 2 lines, 1,200 lines."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
