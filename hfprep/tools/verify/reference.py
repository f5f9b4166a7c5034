"""Checks results against the published library: computes samples again with it, and compares.

The recipe defines what the library can compute. Programs that sum in a different order differ in a few codes, so only a
fraction of the codes must be equal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hfprep.errors import ConfigError, RejectedSample
from hfprep.inputs.audio.decode import load_waveform
from hfprep.inputs.manifest.rows import AudioFinder
from hfprep.pipeline.inputs import Inputs
from hfprep.pipeline.stores import Stores
from hfprep.recipes.base import ModelSet, Referenced
from hfprep.schema import artifact_path
from hfprep.tools.verify.faults import FaultKind, Findings
from hfprep.tools.verify.parity import SEGMENT, Stored, audio_of

LEAST_AGREEMENT = 0.98  # of a sample's codes


@dataclass(frozen=True, slots=True)
class ReferenceResult:
    """The result: compared samples and codes, differing codes."""

    samples: int
    codes: int
    codes_differing: int

    @property
    def agreement(self) -> float:
        """The fraction of equal codes."""
        return 1 - self.codes_differing / self.codes if self.codes else 1.0


def compare_with_reference(
    records: Sequence[dict[str, Any]],
    stored: Stored,
    findings: Findings,
    *,
    inputs: Inputs,
    audio_sr: int | None,
    finder: AudioFinder,
    folder: str | None = None,
) -> ReferenceResult:
    """Compute each record's sample with the published library and compare; faults are added to `findings`.

    Raises ConfigError if the recipe has no reference, or the library is not installed.
    """
    models: ModelSet = inputs.models
    if not isinstance(models, Referenced):
        raise ConfigError(f"--reference: the recipe {inputs.schema.recipe!r} has no published library to compare with")
    reference = models.reference()
    samples = codes = differing = 0
    stores = Stores()
    for record in records:
        sample_id = record["id"]
        try:
            path, rate = audio_of(record, finder, folder), models.audio.sampling_rate
            waveform = stores.ask(
                path,
                partial(load_waveform, path, sampling_rate=rate, via=audio_sr, segment=record.get(SEGMENT)),
            )
        except RejectedSample as error:
            findings.add(FaultKind.REFERENCE, record["audio_path"], error.message, sample_id=sample_id)
            continue
        before = stored(sample_id)
        samples += 1
        for name, now in reference(waveform.samples).items():
            then = before[name]
            unequal = now.size if then.shape != now.shape else int((then != now).sum())
            codes, differing = codes + now.size, differing + unequal
            if unequal > (1 - LEAST_AGREEMENT) * now.size:
                message = f"{unequal} of {now.size} codes differ from those of the published library"
                where = artifact_path(name, sample_id)
                findings.add(FaultKind.REFERENCE, where, message, sample_id=sample_id, column=name)
    return ReferenceResult(samples, codes, differing)
