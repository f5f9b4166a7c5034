"""Files in object storage by their URL: `s3://bucket/key`, or another scheme of `STORES`.

The only module that calls fsspec. What is not there is a FileNotFoundError, as on a disk. Everything else that goes
wrong (no network, no credentials, no permission) is a StoreError that names the URL: it says nothing about the file, so
no sample may be rejected for it. Transient failures are tried again by the stores' own libraries before that.
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
from typing import Any, BinaryIO

from hfprep.errors import ConfigError, HfprepError, StoreError
from hfprep.io.references import file_of

REQUESTS_AT_A_TIME = 32  # a request waits for the network, not for a processor
READ_AHEAD_BYTES = 1 << 20
# Object storage alone. fsspec knows dozens of other schemes, which ask hosts of the web, run programs or open local
# files; no row of a manifest may choose one of those.
STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "tos", "obs"})
CHAIN = "::"  # joins URLs for fsspec: a file inside another one, behind another scheme
EXTRAS = {"s3": "pip install 'hfprep[s3]'", "s3a": "pip install 'hfprep[s3]'"}
# What tells one content under a name from another, the surest first: a hash, else a time.
VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "updated", "mtime", "created")
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://(?=[^/])")
_ANY_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.:-]+)://")
_FOLDED = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?=[^/])")
_ANY_FOLDED = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]+):/{1,2}(?=[^/])")


@dataclass(frozen=True, slots=True)
class RemoteStatus:
    """What a store says of a file: bytes, and a number that is another when the content is another."""

    size: int
    version: int


def is_url(text: str) -> bool:
    """Whether a string names a file in object storage."""
    found = _URL.match(text)
    return found is not None and found["scheme"].lower() in STORES and CHAIN not in file_of(text)


def refusal(text: str) -> str | None:
    """Why a string that looks like a URL is not read; None if it may be, or is none."""
    found = _ANY_URL.match(text)
    if found is None or is_url(text):
        return None
    if found["scheme"].lower() in STORES:
        return f"URLs that are chained with {CHAIN} are not read; give the URL of the file itself"
    allowed = ", ".join(f"{scheme}://" for scheme in ("s3", "gs", "az", "abfs"))
    return f"{found['scheme']}:// is not read; download the file, or give a URL of object storage ({allowed} and such)"


def any_url(path: Path | str) -> str | None:
    """The URL, of whatever scheme, that a path was made from; None for one of this machine."""
    text = str(path)
    if _ANY_FOLDED.match(text) is None or os.path.exists(text):
        return None
    return _ANY_FOLDED.sub(r"\1://", text, count=1)


def check_local(path: Path | str, *, written: bool = False) -> None:
    """Raise ConfigError where a folder that is to be read (or `written`) here is given as a URL."""
    url = any_url(path)
    if url is None:
        return
    if written:
        advice = "is written on this machine; give a folder, and copy it there afterwards"
    else:
        advice = "is read from a folder of this machine; copy it here first (aws s3 sync, rclone copy, hf download)"
    raise ConfigError(f"{url!r} is a URL, and what is asked for {advice}")


def store_of(url: str) -> str:
    """What a URL's credentials are for: its scheme and bucket."""
    scheme, _, place = url.partition("://")
    return f"{scheme.lower()}://{place.partition('/')[0]}"


def url_of(path: Path | str) -> str | None:
    """The URL that a path was made from, None for an ordinary path; `pathlib` folds the slashes of a URL into one."""
    text = _FOLDED.sub(r"\1://", str(path), count=1) if _FOLDED.match(str(path)) else str(path)
    return text if is_url(text) else None


def joined(folder: str, path: str) -> str:
    """The URL of a relative path from a folder's URL; `..` leads no higher than the bucket."""
    store = store_of(folder)
    inside = posixpath.join("/", folder.removeprefix(store), path)
    return f"{store}/{posixpath.normpath(inside).lstrip('/')}"


def status(url: str) -> RemoteStatus:
    """Size and version of a file."""
    with _explained(url):
        store, path = opened(url)
        info = store.info(path)
    if info.get("type") == "directory":
        raise FileNotFoundError(url)
    version = next((str(info[name]) for name in VERSIONS if info.get(name)), "")
    digest = hashlib.blake2b(version.encode(), digest_size=8).digest()
    return RemoteStatus(int(info["size"]), int.from_bytes(digest) >> 1)


def read(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """The content of a file, or its bytes from `start` up to `end`, as far as there are any."""
    with _explained(url):
        store, path = opened(url)
        try:
            content: bytes = store.cat_file(path, start=start, end=end)
        except OSError as error:
            if isinstance(error, FileNotFoundError) or start is None or store.info(path)["size"] > start:
                raise
            return b""  # a store answers a range beyond the end with an error
        return content


def open_stream(url: str) -> BinaryIO:
    """Open a file for reading from anywhere in it, some of it ahead."""
    with _explained(url):
        store, path = opened(url)
        file = store.open(path, "rb", block_size=READ_AHEAD_BYTES, cache_type="readahead")
    return io.BufferedReader(_Stream(file, url), READ_AHEAD_BYTES)


def write(url: str, content: bytes, *, only_new: bool = False) -> None:
    """Put a file in place as a whole; raises FileExistsError if it is there already and `only_new`."""
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
    """Put a local file in place as a whole, in parts where it is large."""
    with _explained(url), _into_a_bucket(url):
        store, path = opened(url)
        store.put_file(str(source), path)


def download(url: str, target: Path) -> None:
    """Copy a file here."""
    with _explained(url):
        store, path = opened(url)
        store.get_file(path, str(target))


def remove(url: str) -> None:
    """Remove a file; it may be gone already."""
    with _explained(url), contextlib.suppress(FileNotFoundError):
        store, path = opened(url)
        store.rm_file(path)


def file_names(folder: str) -> list[str]:
    """Names of the files directly in a folder; none where there is no such folder."""
    return list(file_sizes(folder))


def file_sizes(folder: str) -> dict[str, int]:
    """Bytes of the files directly in a folder, by name; none where there is no such folder."""
    with _explained(folder):
        store, path = opened(folder)
        store.invalidate_cache()
        try:
            found = store.ls(path, detail=True)
        except FileNotFoundError:
            return {}
        return {posixpath.basename(item["name"]): int(item["size"]) for item in found if item["type"] == "file"}


class _Stream(io.RawIOBase):
    """A file of a store as Python's own buffers want it, its errors explained."""

    def __init__(self, file: Any, url: str) -> None:
        self._file = file
        self._url = url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        with _explained(self._url):
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


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
        raise FileNotFoundError(f"{scheme}:// is no kind of storage that fsspec knows") from None
    except ImportError as error:
        remedy = EXTRAS.get(scheme, f"pip install the fsspec package for {scheme}")
        raise ConfigError(f"{scheme}:// needs a package that is not installed ({error}): {remedy}") from error


@functools.lru_cache(maxsize=64)
def _store(scheme: str, options: str) -> Any:
    """One store for all threads: connections are shared, and what was listed is not remembered."""
    import fsspec

    values = json.loads(options) | {"use_listings_cache": False}
    if scheme in EXTRAS and "config_kwargs" not in fsspec.config.conf.get("s3", {}):
        values["config_kwargs"] = {"max_pool_connections": REQUESTS_AT_A_TIME}
    if scheme in EXTRAS:
        values["max_concurrency"] = 1  # else each file's size is asked for before the file is
    return _kind(scheme)(**values, skip_instance_cache=True)


@contextlib.contextmanager
def _into_a_bucket(url: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise StoreError(f"cannot write {url}: {error}; is there such a bucket?") from error


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """Let through what says something about this one file; anything else is the store's, and a StoreError."""
    try:
        yield
    except (HfprepError, FileNotFoundError, FileExistsError):
        raise
    except Exception as error:
        if type(error).__name__ == "ParamValidationError":  # botocore's, for what can be no bucket or key
            raise FileNotFoundError(f"{url} cannot name a file: {error}") from error
        what = str(error).strip() or type(error).__name__
        if isinstance(error, PermissionError):
            advice = "check its permissions (reading, writing, listing) and the credentials"
        else:
            advice = "check the network, the credentials and the address of the store"
        raise StoreError(f"{url} cannot be reached: {what}; {advice}, then run the same command again") from error
