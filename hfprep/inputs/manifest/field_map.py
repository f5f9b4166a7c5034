"""`--map text=sentence,audio=path,id=utt`: maps fields of the input to hfprep's fields.

Only knows names; knows nothing about files or formats. Rows are dicts.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hfprep.errors import ConfigError, Reason, RejectedSample
from hfprep.io.references import name_of

FIELDS = ("id", "text", "audio", "speaker", "language", "duration", "offset")
NUMBERS = ("duration", "offset")  # seconds
REQUIRED = ("id", "text", "audio")
LINE, AUDIO = "@line", "@audio"  # what an id can be generated from instead of a field
LINE_DIGITS = 8

Source = TypeVar("Source")


@dataclass(frozen=True)
class FieldMap:
    """The input's name for each of hfprep's fields; a field that is not in the map has the same name in the input."""

    sources: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str | None) -> "FieldMap":
        """Parse "text=sentence,audio=path". Raises ConfigError."""
        sources: dict[str, str] = {}
        for item in (text or "").split(","):
            ours, equals, theirs = (part.strip() for part in item.partition("="))
            if not item.strip():
                continue
            if not equals or not theirs or ours not in FIELDS or ours in sources:
                allowed = f"FIELD=NAME, separated by commas; FIELD is one of {', '.join(FIELDS)}, each at most once"
                raise ConfigError(f"--map is {text!r}; {item!r} is wrong: it must be {allowed}")
            if theirs.startswith("@") and (ours, theirs) not in (("id", LINE), ("id", AUDIO)):
                raise ConfigError(f"--map is {text!r}; only ids can be generated: id={LINE} or id={AUDIO}")
            sources[ours] = theirs
        return cls(sources)

    def source(self, ours: str) -> str:
        """The input's name for one of hfprep's fields."""
        return self.sources.get(ours, ours)

    def check(self, columns: Collection[str], where: str) -> None:
        """Check the map against the columns of an input that has a header. Raises ConfigError.

        All mapped columns and all required fields must be there.
        """
        for ours in FIELDS:
            theirs = self.source(ours)
            if theirs.startswith("@") or theirs in columns or (ours not in REQUIRED and ours not in self.sources):
                continue
            offer = f"--map {ours}=COLUMN"
            if ours == "id":
                offer += f", or generate ids: --map id={LINE} (row number) or id={AUDIO} (name of the audio file)"
            have = ", ".join(map(str, sorted(columns)[:20]))
            raise ConfigError(f"{where} has no column {theirs!r}; it has: {have}. Say which one it is: {offer}")

    def applied(
        self, number: int, read: Callable[[Source], dict[str, Any]], source: Source
    ) -> dict[str, Any] | RejectedSample:
        """The row that `read` makes of a source, under hfprep's names, or the RejectedSample that was raised."""
        try:
            return self.apply(number, read(source))
        except RejectedSample as error:
            return error

    def applied_to(
        self, sources: Iterable[tuple[int, Source]], read: Callable[[Source], dict[str, Any]]
    ) -> Iterator[tuple[int, dict[str, Any] | RejectedSample]]:
        """The same for each of the numbered sources."""
        return ((number, self.applied(number, read, source)) for number, source in sources)

    def apply(self, number: int, row: dict[str, Any]) -> dict[str, Any]:
        """The row under hfprep's names; mapped fields do not keep their original names. Raises RejectedSample."""
        if not self.sources:
            return row
        used = {*self.sources, *self.sources.values()}
        renamed = {name: value for name, value in row.items() if name not in used}
        for ours, theirs in self.sources.items():
            if theirs in row:
                renamed[ours] = row[theirs]
            elif ours in REQUIRED and not theirs.startswith("@"):
                message = f"the field {theirs!r} (--map {ours}={theirs}) is missing; fields: {sorted(row)[:12]}"
                raise RejectedSample(Reason.MISSING_FIELD, message)
        if self.source("id") == LINE:
            renamed["id"] = f"{number:0{LINE_DIGITS}d}"
        elif self.source("id") == AUDIO and isinstance(renamed.get("audio"), str):
            renamed["id"] = name_of(renamed["audio"])
        return renamed
