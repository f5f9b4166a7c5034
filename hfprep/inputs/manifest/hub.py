"""Reads rows of a data set on the Hub: `datasets` downloads it, converts it to Arrow files and caches it.

`datasets` processes untrusted files as a whole, so it runs in a separate process; the rows are then read from its Arrow
files one by one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from hfprep.errors import ConfigError
from hfprep.inputs.manifest.arrow import ArrowFiles
from hfprep.inputs.manifest.field_map import FieldMap
from hfprep.inputs.manifest.guarded import Died, Guarded, Position, Step, run
from hfprep.inputs.manifest.splits import chosen_split
from hfprep.io.words import first_line

FILES = "files"  # of the one step
DAMAGED = "download its files with `hf download {} --repo-type dataset --local-dir DIR`: Parquet is read row by row"


@dataclass(frozen=True)
class _Fetched(Guarded):
    """The Arrow files of one split, in `datasets`' cache."""

    where: str
    repository: str
    config: str | None
    split: str | None

    def steps(self, start: Position) -> Iterator[Step]:
        """One step with the names of the files."""
        del start
        import datasets
        from huggingface_hub.utils import disable_progress_bars

        datasets.disable_progress_bars()
        disable_progress_bars()
        try:
            split = self.split
            if split is None:
                split = chosen_split(datasets.get_dataset_split_names(self.repository, self.config), None, self.where)
            data = datasets.load_dataset(self.repository, self.config, split=split)
        except ConfigError:
            raise
        except Exception as error:  # any error of the network, the Hub or its files
            if isinstance(error, datasets.exceptions.DatasetGenerationError):
                cause = "it is damaged" if error.__cause__ is None else first_line(error.__cause__)
                raise ConfigError(
                    f"{self.where} cannot be converted: {cause}; {DAMAGED.format(self.repository)}"
                ) from error
            raise ConfigError(
                f"{self.where} cannot be loaded: {first_line(error)}. If you meant a file, correct its path. To "
                "download the data set while online: python -c "
                f"\"import datasets; datasets.load_dataset('{self.repository}')\""
            ) from error
        yield 1, {FILES: [file["filename"] for file in data.cache_files]}


def open_hub(repository: str, config: str | None, split: str | None, fields: FieldMap) -> ArrowFiles:
    """The rows of a data set on the Hub, downloaded unless it is cached. Raises ConfigError."""
    where = f"--manifest {repository!r} (no such file; taken as a data set on the Hub)"
    try:
        for step in run(_Fetched(where, repository, config, split), Position()):
            if isinstance(step, tuple) and isinstance(step[1], dict):
                return ArrowFiles(where, tuple(step[1][FILES]), fields)
    except Died as error:
        raise ConfigError(
            f"{where} cannot be converted: the process that converts it {error}; {DAMAGED.format(repository)}"
        ) from error
    raise ConfigError(f"{where} cannot be loaded: it has no files")
