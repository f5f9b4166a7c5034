"""What the IndexTTS model sets share: w2v-bert-2.0 as the first network, and its precisions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hfprep.recipes.base import PRECISIONS, resampling
from hfprep.recipes.finding import SemanticFiles

if TYPE_CHECKING:
    import torch

_SEMANTIC = ("semantic_model", "w2v_stat")  # prefixes of its files' names


def semantic_files(located: SemanticFiles) -> dict[str, Path]:
    """The files of w2v-bert-2.0 that features depend on, by their names in stats.json."""
    return {f"semantic_model/{path.name}": path for path in (located.semantic_config, *located.semantic_weights)}


def semantic_settings(sha256: Mapping[str, str], *, precision: str, audio_sr: int) -> dict[str, str]:
    """What semantic features depend on."""
    files = {name: value for name, value in sha256.items() if name.startswith(_SEMANTIC)}
    return files | {"audio_sr": resampling(audio_sr), "precision": precision}


class SemanticModelSet:
    """The part of a model set that the semantic encoder determines."""

    @property
    def precisions(self) -> tuple[str, ...]:
        return PRECISIONS

    def packs(self, device: torch.device) -> bool:
        from hfprep.models.masking import packs  # it imports torch

        return packs(device)
