"""Text ids made anew with another tokenizer, from the manifests' own texts; no audio is read.

In place, a manifest names complete files of the right length at every instant: the new ids are written to a folder of
their own, the manifests are pointed at it, the old folder is replaced, and the manifests are pointed back. Killed
anywhere, the same command starts again and ends the same.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfprep.errors import ConfigError, RejectedSample, StoreError
from hfprep.formats.extra_fields import extra_path
from hfprep.formats.folders import appearing_folder
from hfprep.formats.formats import no_manifests
from hfprep.formats.npy import MANIFESTS, NpySplit, is_npy_output
from hfprep.formats.samples import parse_entry, safe_id
from hfprep.inputs.text.tokenizer import TextTokenizer
from hfprep.io import atomic
from hfprep.io.chunks import chunks_of
from hfprep.io.npy_format import npy_bytes
from hfprep.recipes.indextts2.config import ModelConfig
from hfprep.schema import COLUMNS, Need, Utterance, artifact_path
from hfprep.store.fingerprints import AudioIdentity, Fingerprinter, Settings
from hfprep.store.layout import IO_THREADS, PRIVATE, PROGRESS, REJECTED, STATS, json_line
from hfprep.store.state import State
from hfprep.store.statistics import package_versions, write_stats

CHUNK_SAMPLES = 256
MAX_TEXT_TOKENS = 600  # text positions of the published models, where no config.yaml says otherwise
SHOWN = 5
INTERIM = "text_ids.new-"
LENGTHS = "lengths.jsonl"
STATE = "state.sqlite"


def retokenize(
    output: Path, tokenizer: Path, *, output_dir: Path | None = None, config: Path | None = None
) -> dict[str, int]:
    """Write text ids, lengths and manifests of an npy output anew, in place or into a new folder; gives the counts.

    A new folder shares the other artifacts by hard links where the file system has them. Raises ConfigError where the
    tokenizer is not one or, by `config`, too large for the model, and StoreError where a text has no ids under it:
    nothing has changed then.
    """
    if not is_npy_output(output):
        raise StoreError(no_manifests(output))
    model = TextTokenizer(tokenizer)
    limits = ModelConfig.read(config) if config is not None else None
    if limits is not None and model.vocab_size > limits.number_text_tokens:
        raise ConfigError(
            f"--tokenizer {str(tokenizer)!r} has {model.vocab_size} tokens, but the model of {config} has only "
            f"{limits.number_text_tokens}; extend the checkpoint first"
        )
    run = _Retokenizing(output, model, limits.max_text_tokens if limits else MAX_TEXT_TOKENS)
    return run.in_place() if output_dir is None else run.beside(output_dir)


@dataclass(frozen=True)
class _Retokenizing:
    """One run over one output."""

    output: Path
    tokenizer: TextTokenizer
    max_text_tokens: int

    def beside(self, target: Path) -> dict[str, int]:
        """The whole output anew in another folder."""
        with appearing_folder(target, lambda _: False) as folder:
            lengths = self.write_ids(folder / "text_ids")
            for name in MANIFESTS:
                for entry in NpySplit(self.output / MANIFESTS[name]).entries():
                    for column in COLUMNS.keys() - {"text_ids"}:
                        source = self.output / entry.record[f"{column}_path"]
                        _link(source, folder / artifact_path(column, safe_id(entry.id, self.output)))
            for kept in (PROGRESS, REJECTED):
                if (self.output / kept).is_file():
                    shutil.copyfile(self.output / kept, folder / kept)
            if extra_path(self.output).is_file():
                extra_path(folder).parent.mkdir(exist_ok=True)
                shutil.copyfile(extra_path(self.output), extra_path(folder))
            counts = self.write_manifests(folder, lengths, lambda sample_id: artifact_path("text_ids", sample_id))
            self.write_stats(folder, lengths)
            _copy_state(self.output, folder)
            with opened_state(folder) as state:
                if state is not None:
                    self.remember(state, lengths)
            lengths.unlink()
        return counts

    def in_place(self) -> dict[str, int]:
        """New ids in the place of the old ones."""
        output, final = self.output, self.output / "text_ids"
        interim = output / (INTERIM + hashlib.sha256(self.tokenizer.fingerprint().encode()).hexdigest()[:12])
        in_use = {parse_entry(line).record["text_ids_path"].split("/")[0] for line in _first_lines(output)}
        for folder in output.glob(INTERIM + "*"):
            if folder.name not in in_use:  # left by a killed run, and named by no manifest
                shutil.rmtree(folder)
        if not (interim / LENGTHS).is_file():
            shutil.rmtree(interim, ignore_errors=True)
            self.write_ids(interim)
        lengths = interim / LENGTHS
        with opened_state(output) as state:
            if state is not None:
                self.forget(state)
            self.write_manifests(output, lengths, lambda sample_id: f"{interim.name}/{sample_id}.npy")
            # Nothing names the old folder from here on.
            atomic.observe("before-replace", final)
            shutil.rmtree(final, ignore_errors=True)
            for entry in self.entries():
                _link(interim / f"{entry['id']}.npy", final / f"{entry['id']}.npy")
            atomic.observe("after-replace", final)
            for path, _, _ in os.walk(final):
                atomic.sync_folder(path)
            counts = self.write_manifests(output, lengths, lambda sample_id: artifact_path("text_ids", sample_id))
            self.write_stats(output, lengths)
            if state is not None:
                self.remember(state, lengths)
        atomic.observe("before-cleanup", interim)
        for folder in output.glob(INTERIM + "*"):
            (folder / LENGTHS).unlink(missing_ok=True)  # first, or a killed clean-up would look like complete ids
            shutil.rmtree(folder)
        return counts

    def entries(self) -> Iterator[dict[str, Any]]:
        """All records, train first."""
        for name in MANIFESTS.values():
            for entry in NpySplit(self.output / name).entries():
                safe_id(entry.id, self.output)
                yield entry.record

    def write_ids(self, folder: Path) -> Path:
        """Tokenize every text into `folder`; gives the file of lengths, written last, in the order of `entries`."""
        folder.mkdir()
        failed: list[str] = []
        with ThreadPoolExecutor(IO_THREADS) as pool, atomic.replacing(folder / LENGTHS) as lengths:
            for chunk in chunks_of(self.entries(), CHUNK_SAMPLES):
                jobs: list[tuple[Path, bytes]] = []
                for record in chunk:
                    try:
                        ids = self.tokenizer.encode(record["text"], record["language"])
                    except RejectedSample as error:
                        failed.append(f"{record['id']!r}: {error.message}")
                        continue
                    jobs.append((folder / f"{record['id']}.npy", npy_bytes(ids)))
                    lengths.write(json_line({"id": record["id"], "text_len": len(ids)}))
                for parent in {path.parent for path, _ in jobs}:
                    parent.mkdir(parents=True, exist_ok=True)
                list(pool.map(lambda job: _write(*job), jobs))
            if failed:
                shown = "\n  ".join(failed[:SHOWN])
                raise StoreError(
                    f"{len(failed)} texts have no ids under this tokenizer, so nothing was changed:\n  {shown}\n"
                    "take them out of the source manifest and build again, or use another tokenizer"
                )
            for path, _, _ in os.walk(folder):
                atomic.sync_folder(path)
        return folder / LENGTHS

    def write_manifests(self, folder: Path, lengths: Path, path_of: Callable[[str], str]) -> dict[str, int]:
        """Both manifests with the new lengths and the paths that `path_of` gives; each is replaced at once."""
        counts = {}
        with open(lengths, "rb") as stream:
            known = map(json.loads, stream)
            for name, manifest in MANIFESTS.items():
                split = NpySplit(self.output / manifest)
                with atomic.replacing(folder / manifest) as out:
                    for entry in split.entries():
                        length = next(known)
                        if length["id"] != entry.id:
                            raise StoreError(f"{self.output / manifest} has changed meanwhile; run the command again")
                        new = {"text_ids_path": path_of(entry.id), "text_len": length["text_len"]}
                        out.write(json_line(entry.record | new))
                counts[name] = len(split)
        return counts

    def forget(self, state: State) -> None:
        """Until the end, the build must not take the text ids for finished."""
        with state.transaction():
            state.begin((record["id"], Need.TEXT) for record in self.entries())

    def remember(self, state: State, lengths: Path) -> None:
        """Tell the build that the text ids are finished under the new tokenizer."""
        text = {"tokenizer": self.tokenizer.model_sha256, "normalizer": self.tokenizer.normalizer.fingerprint()}
        settings = Settings(text=text, codes={}, latents={})
        fingerprinter = Fingerprinter(settings)
        with open(lengths, "rb") as stream, state.transaction():
            for record, length in zip(self.entries(), map(json.loads, stream), strict=True):
                row = Utterance(0, record["id"], record["text"], "", "", language=record["language"])
                fingerprint = fingerprinter.of(row, AudioIdentity(0, 0)).text
                state.adopt(record["id"], {"text": fingerprint, "text_len": length["text_len"]})
            state.put("settings", (state.get("settings") or {}) | {"text": settings.groups()["text"]})
            state.put("exports", {})

    def write_stats(self, folder: Path, lengths: Path) -> None:
        """stats.json with what the new tokenizer changes in it."""
        try:
            stats = json.loads((self.output / STATS).read_bytes())
        except FileNotFoundError:
            return
        stats["tokenizer"] = str(self.tokenizer.model_path)
        if "sha256" in stats:
            stats["sha256"]["tokenizer"] = self.tokenizer.model_sha256
        if "versions" in stats:
            stats["versions"] |= package_versions()
        if "overlong" in stats:
            with open(lengths, "rb") as stream:
                long = Counter(json.loads(line)["text_len"] > self.max_text_tokens for line in stream)
            stats["overlong"]["text"] = long[True]
        write_stats(folder / STATS, stats)


@contextlib.contextmanager
def opened_state(output: Path) -> Iterator[State | None]:
    """The build's memory of what is finished, where there is one."""
    path = output / PRIVATE / STATE
    if not path.is_file():
        yield None
        return
    state = State(path)
    try:
        yield state
    finally:
        state.close()


def _copy_state(source: Path, target: Path) -> None:
    if (source / PRIVATE / STATE).is_file():
        (target / PRIVATE).mkdir(exist_ok=True)
        with (
            contextlib.closing(sqlite3.connect(source / PRIVATE / STATE)) as database,
            contextlib.closing(sqlite3.connect(target / PRIVATE / STATE)) as copy,
        ):
            database.backup(copy)


def _first_lines(output: Path) -> Sequence[bytes]:
    lines = []
    for name in MANIFESTS.values():
        with open(output / name, "rb") as stream:
            lines += [line for line in (stream.readline(),) if line]
    return lines


def _link(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def _write(path: Path, data: bytes) -> None:
    with atomic.explained(path), open(path, "xb") as stream:
        atomic.observe("before-write", path)
        stream.write(data)
        stream.flush()
        atomic.sync_file(stream.fileno(), path)
