"""Checks results against the published library: computes samples again with it, and compares.

The recipe defines what the library can compute. Programs that sum in a different order differ in a few codes, so only a
fraction of the codes must be equal.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from hfprep.errors import ConfigError, RejectedSample
from hfprep.inputs.audio.decode import load_waveform
from hfprep.pipeline.stores import Stores
from hfprep.recipes.base import ModelSet, Referenced
from hfprep.schema import artifact_path
from hfprep.tools.verify.faults import FaultKind
from hfprep.tools.verify.parity import SEGMENT, Compared, Output

LEAST_AGREEMENT = 0.98  # of a sample's codes


def compare_with_reference(records: Sequence[dict[str, Any]], output: Output) -> Compared:
    """Compute each record's sample with the published library and compare it with the stored one.

    Raises ConfigError if the recipe has no reference, or the library is not installed.
    """
    models: ModelSet = output.inputs.models
    if not isinstance(models, Referenced):
        raise ConfigError(f"--reference: the recipe {models.schema.recipe!r} has no published library to compare with")
    reference = models.reference()
    samples = codes = differing = 0
    stores = Stores()
    for record in records:
        sample_id = record["id"]
        try:
            path, rate = output.audio_of(record), models.audio.sampling_rate
            load = partial(load_waveform, path, sampling_rate=rate, via=output.via, segment=record.get(SEGMENT))
            waveform = stores.ask(path, load)
        except RejectedSample as error:
            output.findings.add(FaultKind.REFERENCE, record["audio_path"], error.message, sample_id=sample_id)
            continue
        before = output.stored(sample_id)
        samples += 1
        for name, now in reference(waveform.samples).items():
            then = before[name]
            unequal = now.size if then.shape != now.shape else int((then != now).sum())
            codes, differing = codes + now.size, differing + unequal
            if unequal > (1 - LEAST_AGREEMENT) * now.size:
                message = f"{unequal} of {now.size} codes differ from those of the published library"
                where = artifact_path(name, sample_id)
                output.findings.add(FaultKind.REFERENCE, where, message, sample_id=sample_id, column=name)
    return Compared(samples, codes, differing)
