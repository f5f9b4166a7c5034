"""The errors hfprep raises, and the reasons a sample can be rejected for.

HfprepError                  base of all errors that hfprep raises; the CLI prints the message and exits with status 1
├── ConfigError              an option, a path or a value in config.yaml is wrong (also a ValueError)
├── CheckpointError          a model file is missing, incomplete or has the wrong architecture
├── StoreError               the output directory cannot be used: locked, read-only, full, changed
├── StopRequested            the run was asked to stop (Ctrl-C, SIGTERM); build() returns a Summary that says so
└── RejectedSample           this one sample cannot be used; the run goes on without it

This module knows nothing about where samples come from or where rejections are written.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why a sample was rejected; the fixed set of codes in rejected.jsonl."""

    INVALID_ENCODING = "invalid_encoding"
    INVALID_JSON = "invalid_json"
    MISSING_FIELD = "missing_field"
    INVALID_FIELD = "invalid_field"
    INVALID_ID = "invalid_id"
    DUPLICATE_ID = "duplicate_id"
    EMPTY_TEXT = "empty_text"
    TEXT_FAILED = "text_failed"
    TEXT_TOO_LONG = "text_too_long"
    AUDIO_MISSING = "audio_missing"
    AUDIO_UNREADABLE = "audio_unreadable"
    AUDIO_UNSUPPORTED = "audio_unsupported"
    AUDIO_EMPTY = "audio_empty"
    AUDIO_NOT_FINITE = "audio_not_finite"
    AUDIO_TOO_SHORT = "audio_too_short"
    AUDIO_TOO_LONG = "audio_too_long"
    CODES_TOO_LONG = "codes_too_long"
    UNDER_MIN_SECONDS = "under_min_seconds"
    OVER_MAX_SECONDS = "over_max_seconds"
    OVER_MAX_CHARS_PER_SECOND = "over_max_chars_per_second"
    OUT_OF_MEMORY = "out_of_memory"
    COMPUTE_FAILED = "compute_failed"


class HfprepError(Exception):
    """Base class of all errors that hfprep raises."""


class ConfigError(HfprepError, ValueError):
    """An option or a configuration value is wrong; the message names it, its value and what is allowed."""


class CheckpointError(HfprepError):
    """A model file is missing, incomplete or has an architecture that hfprep does not support."""


class StoreError(HfprepError):
    """The output directory cannot be used as requested; its content is unchanged."""


class StopRequested(HfprepError):
    """The run was asked to stop early; everything published so far is kept."""


class RejectedSample(HfprepError):
    """One sample cannot be used: a `Reason` and a message that says what was found and what to do."""

    def __init__(self, reason: Reason, message: str) -> None:
        message = message.encode("utf-8", "backslashreplace").decode()  # paths may not be valid UTF-8
        super().__init__(message)
        self.reason = reason
        self.message = message

    def __reduce__(self) -> tuple[type["RejectedSample"], tuple[Reason, str]]:
        """Pickle both arguments; Exception's own pickling keeps only the message."""
        return type(self), (self.reason, self.message)
