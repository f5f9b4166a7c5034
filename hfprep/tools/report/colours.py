"""Colours and markers that tell labels apart: on light and on dark ground, and for colour-blind readers.

Every colour has a contrast of 3 or more with both grounds. Any two are at least 19 apart in CIELAB, also as somebody
without one kind of cone sees them; the first ones, which are used most, are further apart. Markers differ as well.
"""

from collections import Counter
from collections.abc import Sequence

INK = "#2d86c9"
BEYOND = "#c2620a"  # what is not like the rest: limits, overflow, split batches
OTHERS = "#84878c"
PALETTE = (INK, "#84780c", "#9018fc", "#e46c90", "#547848", "#846cfc", "#cc0090")
MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "hex", "star")
NONE_GIVEN, THE_REST = "(none)", "others"


def labels_shown(labels: Sequence[str]) -> list[str]:
    """For each label the one that the legend has for it: itself, if it is among the most frequent, or "others"."""
    frequent = [name for name, _ in Counter(labels).most_common() if name != NONE_GIVEN]
    kept = {*frequent[: len(PALETTE)], NONE_GIVEN}
    return [label if label in kept else THE_REST for label in labels]


def looks(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each label that the legend has, the most frequent first, then what is left over."""
    frequent = [name for name, _ in Counter(labels).most_common() if name not in {NONE_GIVEN, THE_REST}]
    found = dict(zip(frequent, zip(PALETTE, MARKERS, strict=True), strict=False))
    for name, marker in ((THE_REST, "x"), (NONE_GIVEN, "cross")):
        if name in labels:
            found[name] = (OTHERS, marker)
    return found
