"""What the disk says of manifest rows: their audio, the artifacts of finished samples, artifacts to adopt.

Takes rows and what the state knows of them; looks files up, and opens none but the headers of what may be adopted.
Decides nothing, changes nothing; safe to use from several threads.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pyarrow import fs

from hfprep.errors import Reason, RejectedSample
from hfprep.inputs.audio.decode import TARGET_SAMPLING_RATE, read_header
from hfprep.io.object_storage import REQUESTS_AT_A_TIME, is_url
from hfprep.models.input_features import num_input_frames
from hfprep.schema import COLUMNS, Need, Utterance
from hfprep.store.fingerprints import AudioIdentity
from hfprep.store.layout import NpyOutput
from hfprep.store.shard_index import Packed
from hfprep.store.state import SampleState

Known = tuple[Utterance, SampleState | None, Packed | None]  # a row, what the state says of it, where it is packed
ADOPTED_LENGTH_SLACK = 1  # frames; a header's length of an mp3 may be a little off


def identify_audio(path: str, *, by_content: bool) -> AudioIdentity:
    """Which file is there at `path`; RejectedSample where there is none or it cannot be looked at.

    Raises StoreError where the object storage that holds it cannot be reached.
    """
    try:
        return AudioIdentity.of(path, by_content=by_content)
    except (FileNotFoundError, NotADirectoryError):
        message = f"there is no file {path}; correct `audio` or restore the file"
        raise RejectedSample(Reason.AUDIO_MISSING, message) from None
    except OSError as error:
        raise RejectedSample(Reason.AUDIO_UNREADABLE, f"{path}: {error.strerror or error}") from error


@dataclass(frozen=True, slots=True)
class Inspected:
    """One row: its audio, what is known of it, which finished groups are not whole, what may be adopted."""

    identity: AudioIdentity
    known: SampleState | None
    incomplete: Need
    adopted: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Inspector:
    """Looks at rows; adopts artifacts without a record only if `adopt`, and only where they are `model_dim` wide."""

    output: NpyOutput
    hash_audio: bool
    adopt: bool
    model_dim: int | None

    def inspect(self, rows: Sequence[Known]) -> list[Inspected | RejectedSample]:
        """What the disk says of each of these rows; a RejectedSample where the audio is not there."""
        found: list[Inspected | RejectedSample] = []
        remote = self._identify_remote(utterance.path for utterance, _, _ in rows if is_url(utterance.path))
        for (utterance, known, packed), files in zip(rows, self._look(rows), strict=True):
            try:
                identity = remote.get(utterance.path) or self._identify(utterance, files)
                if isinstance(identity, RejectedSample):
                    raise identity
                found.append(self._inspect(utterance, known, packed, identity, files))
            except RejectedSample as error:
                found.append(error)
        return found

    def _identify_remote(self, urls: Iterable[str]) -> dict[str, AudioIdentity | RejectedSample]:
        """What the store says of these files, many asked at a time."""

        def identify(url: str) -> AudioIdentity | RejectedSample:
            try:
                return identify_audio(url, by_content=self.hash_audio)
            except RejectedSample as error:
                return error

        wanted = list(dict.fromkeys(urls))
        if not wanted:
            return {}
        with ThreadPoolExecutor(min(len(wanted), REQUESTS_AT_A_TIME)) as pool:
            return dict(zip(wanted, pool.map(identify, wanted), strict=True))

    def _identify(self, utterance: Utterance, files: Sequence[fs.FileInfo] | None) -> AudioIdentity:
        size = None if files is None or self.hash_audio else files[0].size
        if files is None or size is None:  # also where it is missing, and where it is a clip inside another file
            return identify_audio(utterance.path, by_content=self.hash_audio)
        return AudioIdentity(size, files[0].mtime_ns)

    def _look(self, rows: Sequence[Known]) -> Iterator[Sequence[fs.FileInfo] | None]:
        """For each finished row its audio file and artifacts, looked up in one call that leaves Python to others.

        None for other rows, and for all of them where a look fails: each is then looked at by itself.
        """
        paths = [
            path
            for utterance, known, _ in rows
            if known is not None
            for path in (
                "." if is_url(utterance.path) else utterance.path,  # the store was asked already
                *self.output.artifacts(utterance.id),
            )
        ]
        try:
            infos = iter(fs.LocalFileSystem().get_file_info(paths))
        except (OSError, ValueError):
            return itertools.repeat(None, len(rows))
        return (None if known is None else tuple(itertools.islice(infos, 1 + len(COLUMNS))) for _, known, _ in rows)

    def _inspect(
        self,
        utterance: Utterance,
        known: SampleState | None,
        packed: Packed | None,
        identity: AudioIdentity,
        files: Sequence[fs.FileInfo] | None,
    ) -> Inspected:
        if known is not None:
            sizes = None if files is None else [file.size for file in files[1:]]
            incomplete = self.output.incomplete(utterance.id, known, sizes)
            if incomplete and packed is not None:
                incomplete &= ~packed.holds(known)
            return Inspected(identity, known, incomplete, {})
        return Inspected(identity, None, Need.NOTHING, self._adoptable(utterance) if self.adopt else {})

    def _adoptable(self, utterance: Utterance) -> dict[str, Any]:
        """Lengths of the artifacts on disk that count as done; of audio columns only where the codes fit the audio."""
        shapes = {name: self.output.read_shape(name, utterance.id) for name in COLUMNS}
        values: dict[str, Any] = {}
        if shapes["text_ids"] and shapes["text_ids"][0]:
            values |= {"text": True, "text_len": shapes["text_ids"][0]}
        codes, condition, emo_vec = shapes["codes"], shapes["condition"], shapes["emo_vec"]
        if codes and condition and emo_vec and condition[1:] == emo_vec and self.model_dim in (None, emo_vec[0]):
            try:
                header = read_header(utterance.path)
            except RejectedSample:
                return values
            expected = num_input_frames(round(header.seconds * TARGET_SAMPLING_RATE))
            if abs(codes[0] - expected) <= ADOPTED_LENGTH_SLACK:
                values |= {"codes": True, "latents": True, "code_len": codes[0], "seconds": header.seconds}
                values |= {"condition_len": condition[0], "model_dim": condition[1]}
            else:
                values["mended"] = True
        return values
