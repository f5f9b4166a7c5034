"""Samples and seconds by language, speaker or split."""

from dataclasses import dataclass

NONE_GIVEN = "(none)"  # the label of samples without a language or speaker


@dataclass
class Share:
    """Samples and seconds of a language, speaker or split."""

    samples: int = 0
    seconds: float = 0.0


def add_to(shares: dict[str, Share], label: str | None, seconds: float) -> None:
    """Add a sample to the share of its label."""
    share = shares.setdefault(label or NONE_GIVEN, Share())
    share.samples += 1
    share.seconds += seconds
