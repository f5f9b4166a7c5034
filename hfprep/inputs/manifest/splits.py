"""Which split of a data set is read where none, or one by name, was asked for."""

from collections.abc import Sequence

from hfprep.errors import ConfigError

DEFAULT_SPLIT = "train"


def chosen_split(splits: Sequence[str], wanted: str | None, where: str) -> str:
    """The wanted split; without one the only one, else `train`. Raises ConfigError that names what there is."""
    if wanted is not None:
        if wanted not in splits:
            raise ConfigError(f"{where} has no split {wanted!r}; it has: {', '.join(splits)}")
        return wanted
    if len(splits) == 1:
        return splits[0]
    if DEFAULT_SPLIT in splits:
        return DEFAULT_SPLIT
    raise ConfigError(f"{where} has several splits; name one after a colon: {' '.join(':' + name for name in splits)}")
