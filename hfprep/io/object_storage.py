"""Files in object storage by URL: `s3://bucket/key`, or another scheme of `STORES`.

The only module that calls fsspec. A missing file is a FileNotFoundError, as on a disk. Any other failure (no network,
no credentials, no permission) is a StoreError with the URL: it says nothing about the file, so no sample may be
rejected for it. The stores' libraries retry transient failures first.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfprep.errors import ConfigError, HfprepError, StoreError
from hfprep.io.references import file_of

REQUESTS_AT_A_TIME = 32  # requests are bound by the network, not the CPU
READ_AHEAD_BYTES = 1 << 20
# Object storage only. fsspec knows dozens of other schemes, which contact web hosts, run programs or open local files;
# a manifest must not be able to use one of those.
STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "tos", "obs"})
CHAIN = "::"  # fsspec's separator of chained URLs: a file inside another file, through another scheme
EXTRAS = {"s3": "pip install 'hfprep[s3]'", "s3a": "pip install 'hfprep[s3]'"}
# Fields of a file's info that change with its content, most reliable first: a hash, else a time.
VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "updated", "mtime", "created")
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://(?=[^/])")
_ANY_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.:-]+)://")
_FOLDED = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):/(?=[^/])")
_ANY_FOLDED = re.compile(r"^([A-Za-z][A-Za-z0-9+.:-]+):/{1,2}(?=[^/])")


@dataclass(frozen=True, slots=True)
class RemoteStatus:
    """A file's size in bytes, and a number that changes with its content."""

    size: int
    version: int


def is_url(text: str) -> bool:
    """Whether a string names a file in object storage."""
    if "://" not in text:
        return False
    found = _URL.match(text)
    return found is not None and found["scheme"].lower() in STORES and CHAIN not in file_of(text)


def refusal(text: str) -> str | None:
    """Why a string that looks like a URL cannot be read; None if it can, or is not a URL."""
    found = _ANY_URL.match(text) if "://" in text else None
    if found is None or is_url(text):
        return None
    if found["scheme"].lower() in STORES:
        return f"URLs chained with {CHAIN} are not supported; give the URL of the file itself"
    allowed = ", ".join(f"{scheme}://" for scheme in ("s3", "gs", "az", "abfs"))
    return f"{found['scheme']}:// is not supported; download the file, or give an object storage URL ({allowed}, ...)"


def any_url(path: Path | str) -> str | None:
    """The URL, of any scheme, that a path was made from; None for a local path."""
    text = str(path)
    if _ANY_FOLDED.match(text) is None or os.path.exists(text):
        return None
    return _ANY_FOLDED.sub(r"\1://", text, count=1)


def check_local(path: Path | str, *, written: bool = False) -> None:
    """Raise ConfigError if a URL is given where a local folder is needed, to be read or `written`."""
    url = any_url(path)
    if url is None:
        return
    if written:
        advice = "this can only be written to a local folder; give one, and copy it there afterwards"
    else:
        advice = "this is only read from a local folder; copy it here first (aws s3 sync, rclone copy, hf download)"
    raise ConfigError(f"{url!r} is a URL, but {advice}")


def store_of(url: str) -> str:
    """Scheme and bucket of a URL, for which credentials apply."""
    scheme, _, place = url.partition("://")
    return f"{scheme.lower()}://{place.partition('/')[0]}"


def url_of(path: Path | str) -> str | None:
    """The URL that a path was made from, None for an ordinary path; `pathlib` folds a URL's slashes into one."""
    text = _FOLDED.sub(r"\1://", str(path))
    return text if is_url(text) else None


def joined(folder: str, path: str) -> str:
    """The URL of a path relative to a folder's URL; `..` cannot leave the bucket."""
    store = store_of(folder)
    inside = posixpath.join("/", folder.removeprefix(store), path)
    return f"{store}/{posixpath.normpath(inside).lstrip('/')}"


def status(url: str) -> RemoteStatus:
    """Size and version of a file."""
    with _file(url) as (store, path):
        info = store.info(path)
    if info.get("type") == "directory":
        raise FileNotFoundError(url)
    version = next((str(info[name]) for name in VERSIONS if info.get(name)), "")
    digest = hashlib.blake2b(version.encode(), digest_size=8).digest()
    return RemoteStatus(int(info["size"]), int.from_bytes(digest) >> 1)


def read(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """The content of a file, or its bytes from `start` up to `end`, fewer if the file ends before."""
    with _file(url) as (store, path):
        try:
            content: bytes = store.cat_file(path, start=start, end=end)
        except OSError as error:
            if isinstance(error, FileNotFoundError) or start is None or store.info(path)["size"] > start:
                raise
            return b""  # a store answers a range beyond the end with an error
        return content


def open_stream(url: str) -> io.BufferedReader:
    """Open a file for reading, seekable and with read-ahead."""
    with _file(url) as (store, path):
        file = store.open(path, "rb", block_size=READ_AHEAD_BYTES, cache_type="readahead")
    return io.BufferedReader(_Stream(file, url), READ_AHEAD_BYTES)


def write(url: str, content: bytes, *, only_new: bool = False) -> None:
    """Write a file atomically; with `only_new`, raises FileExistsError if it exists."""
    with _explained(url), _into_a_bucket(url):
        store, path = opened(url)
        if not only_new:
            store.pipe_file(path, content)
            return
        try:
            store.pipe_file(path, content, mode="create")
        except OSError as error:
            store.invalidate_cache()
            if store.exists(path):
                raise FileExistsError(url) from error
            raise


def upload(source: Path, url: str) -> None:
    """Upload a local file atomically, a large one in parts."""
    with _explained(url), _into_a_bucket(url):
        store, path = opened(url)
        store.put_file(str(source), path)


def download(url: str, target: Path) -> None:
    """Download a file to `target`."""
    with _file(url) as (store, path):
        store.get_file(path, str(target))


def remove(url: str) -> None:
    """Remove a file, if it exists."""
    with _file(url) as (store, path), contextlib.suppress(FileNotFoundError):
        store.rm_file(path)


def file_sizes(folder: str) -> dict[str, int]:
    """Sizes in bytes of the files directly in a folder, by name; empty if there is no such folder."""
    with _file(folder) as (store, path):
        store.invalidate_cache()
        try:
            found = store.ls(path, detail=True)
        except FileNotFoundError:
            return {}
        return {posixpath.basename(item["name"]): int(item["size"]) for item in found if item["type"] == "file"}


class _Stream(io.RawIOBase):
    """Adapts a file of a store to io.BufferedReader, with its errors explained."""

    def __init__(self, file: Any, url: str) -> None:
        self._file = file
        self._url = url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:
        with _explained(self._url):
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@contextlib.contextmanager
def _file(url: str) -> Iterator[tuple[Any, str]]:
    """The store of a URL, and the file's path in it, while the file is used: errors are explained."""
    with _explained(url):
        yield opened(url)


def opened(url: str) -> tuple[Any, str]:
    """The store of a URL, and the file's path in it."""
    found = _URL.match(url)
    assert found is not None, url
    scheme = found["scheme"].lower()
    kind = _kind(scheme)
    options = kind._get_kwargs_from_urls(url) if scheme not in EXTRAS else {}
    return _store(scheme, json.dumps(options, sort_keys=True)), str(kind._strip_protocol(url))


def _kind(scheme: str) -> Any:
    import fsspec

    try:
        return fsspec.get_filesystem_class(scheme)
    except ValueError:
        raise FileNotFoundError(f"fsspec does not know {scheme}://") from None
    except ImportError as error:
        remedy = EXTRAS.get(scheme, f"pip install the fsspec package for {scheme}")
        raise ConfigError(f"{scheme}:// needs a package that is not installed ({error}): {remedy}") from error


@functools.lru_cache(maxsize=64)
def _store(scheme: str, options: str) -> Any:
    """One store for all threads, with shared connections and no listings cache."""
    import fsspec

    values = json.loads(options) | {"use_listings_cache": False}
    if scheme in EXTRAS and "config_kwargs" not in fsspec.config.conf.get("s3", {}):
        values["config_kwargs"] = {"max_pool_connections": REQUESTS_AT_A_TIME}
    if scheme in EXTRAS:
        values["max_concurrency"] = 1  # otherwise each file's size is requested before the file
    return _kind(scheme)(**values, skip_instance_cache=True)


@contextlib.contextmanager
def _into_a_bucket(url: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise StoreError(f"cannot write {url}: {error}; does the bucket exist?") from error


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """Pass on errors about this one file; turn any other error into a StoreError."""
    try:
        yield
    except (HfprepError, FileNotFoundError, FileExistsError):
        raise
    except Exception as error:
        if type(error).__name__ == "ParamValidationError":  # botocore: an invalid bucket or key
            raise FileNotFoundError(f"{url} cannot name a file: {error}") from error
        what = str(error).strip() or type(error).__name__
        if isinstance(error, PermissionError):
            advice = "check its permissions (reading, writing, listing) and the credentials"
        else:
            advice = "check the network, the credentials and the address of the store"
        raise StoreError(f"{url} cannot be reached: {what}; {advice}, then run the same command again") from error
