"""Computes some clips in one precision, with the extractor that a build uses.

Provides `Trial`, which can be sent to a worker, and its result.
"""

import gc
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hfprep.pipeline.failures import DeviceError
from hfprep.pipeline.intake import Task
from hfprep.schema import Features, Utterance

if TYPE_CHECKING:
    from hfprep.pipeline.engines.spec import ExtractorSpec


@dataclass(frozen=True, slots=True)
class TrialResult:
    """The codes of each clip by manifest line, int32 (codes,), and the computation time in seconds.

    `problem` says why there are none.
    """

    codes: dict[int, np.ndarray]
    seconds: float = 0.0
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Clips to compute, and how to open the extractor."""

    spec: "ExtractorSpec"
    clips: tuple[Utterance, ...]

    def run(self) -> TrialResult:
        """Load the models, compute the clips, and free the models. Raises ConfigError and CheckpointError."""
        import torch

        try:
            extractor = self.spec.open()
        except DeviceError as error:
            return TrialResult({}, problem=str(error))
        try:
            tasks = [Task.of(extractor.schema, utterance, self.spec.need) for utterance in self.clips]
            list(extractor.extract(tasks[:1]))  # warm-up
            codes, seconds = {}, 0.0
            for result in extractor.extract(tasks):
                seconds += result.compute_seconds
                for task, outcome in result.outcomes:
                    if isinstance(outcome, Features):
                        found = [outcome.arrays[column.name] for column in extractor.schema.of_kind("codes")]
                        codes[task.utterance.line] = np.concatenate([array.reshape(-1) for array in found])
        except DeviceError as error:
            return TrialResult({}, problem=str(error))
        finally:
            extractor.close()
            del extractor
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return TrialResult(codes, seconds)
