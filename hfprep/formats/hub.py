"""Pushes a finished set to the Hugging Face Hub: export without local paths, upload, clean up.

An interrupted upload is resumed by pushing again: the export has the same bytes, and the Hub skips files that it has.
"""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from hfprep.errors import ConfigError, StoreError
from hfprep.formats.build_formats import export_shards
from hfprep.formats.card import card
from hfprep.formats.formats import SHARD_FORMATS, open_set
from hfprep.formats.published import PublishedSet
from hfprep.formats.samples import SPLITS, SampleSet
from hfprep.formats.shards import ShardOptions
from hfprep.io.object_storage import check_local

LOGIN = "hf auth login"
CARD = "README.md"
# Exceptions of a failed transfer besides the Hub's own: from the library's HTTP client without a connection, and from
# the library (RuntimeError) for a file.
FAILURES: tuple[type[Exception], ...] = (
    OSError,
    RuntimeError,
    *(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError"),
)
UNAUTHORIZED = {401, 403}
# Files of earlier pushes, in any format, are deleted unless this push replaces them.
STALE = ["train/*", "validation/*", "*.tar", "index.json", "places.npy", "dataset_dict.json"]
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class PushOptions(ShardOptions):
    """How a set is pushed to the Hub."""

    private: bool = True
    format: str = "arrow"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format not in SHARD_FORMATS:
            raise ConfigError(f"--format is {self.format!r}; it must be {' or '.join(SHARD_FORMATS)}")


@dataclass(frozen=True, slots=True)
class Parcel:
    """Summary of a push before the upload: samples by split, number of files, bytes, kind of repository."""

    samples: dict[str, int]
    num_files: int
    num_bytes: int
    private: bool
    is_new: bool


def push(
    source: Path,
    repo: str,
    options: PushOptions | None = None,
    *,
    token: str | None = None,
    report: Callable[[Parcel], None] = lambda _: None,
) -> str:
    """Upload a finished set with its card; returns the URL of the repository, which is created if it does not exist.

    `token` defaults to the saved login; `report` is called before the upload. Raises ConfigError, for example if a
    private set would be pushed to a public repository, or StoreError; pushing again then resumes.
    """
    options = options or PushOptions()
    if not _REPO.fullmatch(repo):
        raise ConfigError(f"the repository is {repo!r}; it must be USER/NAME")
    check_local(source)
    api = HfApi(token=token)
    if token is None and api.token is None and get_token() is None:
        raise ConfigError(f"you are not logged in to the Hub; run: {LOGIN}")
    source = source.absolute()
    folder = _export_folder(source)
    try:
        there = _visibility(api, repo)
        if there == "public" and options.private:
            raise ConfigError(f"{repo} exists and is public; give --public to push there, or another name")
        _export(PublishedSet(open_set(source)), folder, repo, options)
        private = options.private if there is None else there == "private"
        report(_parcel(folder, private=private, is_new=there is None))
        made = api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        message = f"hfprep: {options.format}"
        api.upload_folder(
            repo_id=repo, repo_type="dataset", folder_path=folder, commit_message=message, delete_patterns=STALE
        )
    except FAILURES as error:  # the Hub's own among them
        raise StoreError(_explanation(error, repo)) from error
    shutil.rmtree(folder)
    return str(made)


def _visibility(api: HfApi, repo: str) -> str | None:
    """Whether a repository is "private" or "public"; None if this login sees no such repository."""
    try:
        return "private" if api.dataset_info(repo).private else "public"
    except RepositoryNotFoundError:
        return None


def _parcel(folder: Path, *, private: bool, is_new: bool) -> Parcel:
    files = [path for path in folder.rglob("*") if path.is_file()]
    exported = open_set(folder)
    samples = {split: len(exported.split(split)) for split in SPLITS}
    return Parcel(samples, len(files), sum(path.stat().st_size for path in files), private, is_new)


def _export_folder(source: Path) -> Path:
    """The folder for the export: beside the set, or among temporary files if that is not writable."""
    source = Path(os.path.abspath(source))
    if os.access(source.parent, os.W_OK):
        return source.with_name(f".{source.name}.push")
    digest = hashlib.sha256(os.fsencode(source)).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"hfprep-push-{os.getuid()}-{digest}")


def _export(source: SampleSet, folder: Path, repo: str, options: PushOptions) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    export_shards(source, folder, options.format, options)
    dtype = open_set(folder).origin.latents_dtype
    (folder / CARD).write_text(card(source, repo, data_format=options.format, dtype=dtype), encoding="utf-8")


def _explanation(error: Exception, repo: str) -> str:
    response = error.response if isinstance(error, HfHubHTTPError) else None
    if response is not None and response.status_code in UNAUTHORIZED:
        return f"the Hub does not let this login write to {repo}: {error}; log in with a write token: {LOGIN}"
    return f"pushing to {repo} failed: {error}; push again to resume"
