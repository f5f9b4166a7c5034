"""Parsing of sizes such as 500MB."""

from hfprep.errors import ConfigError

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_size(text: str, name: str = "--max-shard-size") -> int:
    """Bytes of a size such as 500MB or 2GiB; raises ConfigError."""
    number, unit = text.strip().upper(), 1
    for suffix in sorted(UNITS, key=len, reverse=True):
        if number.endswith(suffix):
            number, unit = number.removesuffix(suffix), UNITS[suffix]
            break
    try:
        size = round(float(number) * unit)
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise ConfigError(f"{name} is {text!r}; it must be a size such as 500MB or 2GB")
    return size
