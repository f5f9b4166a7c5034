"""Decides whether a failure is caused by one sample or by the machine.

If every sample fails (a missing compiler, an incompatible driver, a bug in hfprep), the cause is the machine: the run
has to end, and no sample may be rejected for it. So the rejection of a failed sample is `Unproven`, and the `Breaker`
holds it back until another sample has been computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hfprep.errors import HfprepError
from hfprep.schema import Rejection

MAX_IN_A_ROW = 5  # failures of one kind without a success in between
MAX_HELD = 20  # failures of any kind without a success in between


@dataclass(frozen=True, slots=True)
class Unproven(Rejection):
    """A rejection for a failure of some `kind`, which becomes final once any other sample has been computed."""

    kind: str = ""

    def proven(self) -> Rejection:
        """The final rejection."""
        return Rejection(self.line, self.id, self.reason, self.message)


class SystematicFailureError(HfprepError):
    """Samples fail one after another for the same cause: the machine or the model is at fault, not the samples."""


class Breaker:
    """Holds unproven rejections of all workers of a run; ends the run if failures continue."""

    def __init__(self) -> None:
        self._held: list[Unproven] = []
        self._any_computed = False

    def take(self, *, computed: int, rejections: Sequence[Rejection]) -> list[Rejection]:
        """Record a batch: its number of computed samples and its rejections; returns rejections that are final now.

        Raises SystematicFailureError after `MAX_IN_A_ROW` failures of one kind, or `MAX_HELD` of any.
        """
        final = [item for item in rejections if not isinstance(item, Unproven)]
        self._held += [item for item in rejections if isinstance(item, Unproven)]
        if computed:
            self._any_computed = True
            return final + self._release()
        last = self._held[-MAX_IN_A_ROW:]
        alike = len(last) == MAX_IN_A_ROW and len({item.kind for item in last}) == 1
        if alike or len(self._held) >= MAX_HELD:
            raise self._error()
        return final

    @property
    def in_doubt(self) -> bool:
        """Whether unproven rejections are held."""
        return bool(self._held)

    def finish(self) -> list[Rejection]:
        """The held rejections, final at the end of the run.

        Raises SystematicFailureError if no sample was computed and at least two samples failed in the same way.
        """
        if not self._any_computed and len(self._held) > 1 and len({item.kind for item in self._held}) == 1:
            raise self._error()
        return self._release()

    def _release(self) -> list[Rejection]:
        held, self._held = self._held, []
        return [item.proven() for item in held]

    def _error(self) -> SystematicFailureError:
        last = self._held[-1]
        return SystematicFailureError(
            f"{len(self._held)} samples failed one after another, and none succeeded: {last.message}. The cause is "
            f"the machine or the models, not the samples (the last was {last.id!r}); no sample was rejected for it. "
            "Run `hfprep doctor`, fix the cause, and run the same command again: finished work is kept"
        )
