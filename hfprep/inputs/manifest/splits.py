"""Which split of a data set is read."""

from collections.abc import Sequence

from hfprep.errors import ConfigError

DEFAULT_SPLIT = "train"


def chosen_split(splits: Sequence[str], wanted: str | None, where: str) -> str:
    """The wanted split; if None, the only one or `train`. Raises a ConfigError that lists the splits."""
    if wanted is not None:
        if wanted not in splits:
            raise ConfigError(f"{where} has no split {wanted!r}; it has: {', '.join(splits)}")
        return wanted
    if len(splits) == 1:
        return splits[0]
    if DEFAULT_SPLIT in splits:
        return DEFAULT_SPLIT
    raise ConfigError(f"{where} has several splits; name one after a colon: {' '.join(':' + name for name in splits)}")
