"""Formats values for people: durations, sizes, counts with a noun, errors; and parses the sizes that they write."""

import math

from hfprep.errors import ConfigError

SIZES = ("bytes", "kB", "MB", "GB", "TB")
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


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


def parse_size(text: str) -> int:
    """Bytes of a size of shards such as 500MB or 2GiB; raises ConfigError."""
    number = text.strip().upper()
    unit = next((unit for unit in UNITS if number.endswith(unit)), "")
    try:
        num_bytes = round(float(number.removesuffix(unit)) * UNITS.get(unit, 1))
    except (ValueError, OverflowError):
        num_bytes = 0
    if num_bytes <= 0:
        raise ConfigError(f"--max-shard-size is {text!r}; it must be a size such as 500MB or 2GB")
    return num_bytes


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or else its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def count(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: 1 line, 2 lines, 1,200 lines."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
