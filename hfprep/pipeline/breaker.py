"""Whose fault a failure is: one sample's, or the machine's.

A fault that strikes one sample is that sample's. One that strikes every sample (a compiler that is missing, a driver
that does not fit, a mistake of ours) is the machine's: the run has to end, and nothing may be rejected for it. So a
rejection that nobody has proved yet is `Unproven`, and the `Breaker` holds it until another sample has come through.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hfprep.errors import HfprepError
from hfprep.schema import Rejection

MOST_IN_A_ROW = 5  # failures of one kind without a success between them
MOST_HELD = 20  # failures of any kind without a success between them


@dataclass(frozen=True, slots=True)
class Unproven(Rejection):
    """A rejection for a failure of a `kind`, which holds once any other sample has come through."""

    kind: str = ""

    def proven(self) -> Rejection:
        """The plain rejection."""
        return Rejection(self.line, self.id, self.reason, self.message)


class SystematicFailureError(HfprepError):
    """Samples fail one after the other for the same cause: the machine or the model is at fault, not they."""


class Breaker:
    """Holds what nobody has proved, over all workers of a run; ends the run where failures do not."""

    def __init__(self) -> None:
        self._held: list[Unproven] = []
        self._worked = False

    def take(self, *, computed: int, rejections: Sequence[Rejection]) -> list[Rejection]:
        """What is rejected for good now that so many samples were computed and these were refused.

        Raises SystematicFailureError after `MOST_IN_A_ROW` failures of one kind, or `MOST_HELD` of any.
        """
        final = [item for item in rejections if not isinstance(item, Unproven)]
        self._held += [item for item in rejections if isinstance(item, Unproven)]
        if computed:
            self._worked = True
            return final + self._release()
        last = self._held[-MOST_IN_A_ROW:]
        if len(last) == MOST_IN_A_ROW and len({item.kind for item in last}) == 1:
            raise self._error()
        if len(self._held) >= MOST_HELD:
            raise self._error()
        return final

    @property
    def in_doubt(self) -> bool:
        """Whether failures are held of which nobody knows whose fault they are."""
        return bool(self._held)

    def finish(self) -> list[Rejection]:
        """What is rejected at the end of the run.

        Raises SystematicFailureError where nothing came through and at least two samples failed in the same way.
        """
        if not self._worked and len(self._held) > 1 and len({item.kind for item in self._held}) == 1:
            raise self._error()
        return self._release()

    def _release(self) -> list[Rejection]:
        held, self._held = self._held, []
        return [item.proven() for item in held]

    def _error(self) -> SystematicFailureError:
        last = self._held[-1]
        return SystematicFailureError(
            f"{len(self._held)} samples failed one after the other, and none came through: {last.message}. The cause "
            f"is the machine or the models, not the samples (the last was {last.id!r}); nothing was rejected for it. "
            "Run `hfprep doctor`, fix the cause, and run the same command again: finished work is kept"
        )
