"""Parsing of sizes such as 500MB."""

from hfprep.errors import ConfigError

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_size(text: str) -> int:
    """Bytes of a size of shards such as 500MB or 2GiB; raises ConfigError."""
    number = text.strip().upper()
    unit = next((unit for unit in UNITS if number.endswith(unit)), "")
    try:
        size = round(float(number.removesuffix(unit)) * UNITS.get(unit, 1))
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise ConfigError(f"--max-shard-size is {text!r}; it must be a size such as 500MB or 2GB")
    return size
