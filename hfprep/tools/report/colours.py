"""Distinguishable colours and markers for labels, in light and dark mode, and for colour-blind readers.

Every colour has a contrast of at least 3 with both backgrounds. Any two differ by at least 19 in CIELAB, also for
readers with one type of cone missing; the first ones, which are used most, differ more. Markers differ as well.
"""

from collections import Counter
from collections.abc import Sequence

INK = "#2d86c9"
BEYOND = "#c2620a"  # for limits, overflow, split batches
OTHERS = "#84878c"
PALETTE = (INK, "#84780c", "#9018fc", "#e46c90", "#547848", "#846cfc", "#cc0090")
MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "hex", "star")
NONE_GIVEN, THE_REST = "(none)", "others"


def labels_shown(labels: Sequence[str]) -> list[str]:
    """The legend's label for each label: itself if it is among the most frequent, or "others"."""
    frequent = [name for name, _ in Counter(labels).most_common() if name != NONE_GIVEN]
    kept = {*frequent[: len(PALETTE)], NONE_GIVEN}
    return [label if label in kept else THE_REST for label in labels]


def looks(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each label in the legend, the most frequent first, then "others" and "(none)"."""
    frequent = [name for name, _ in Counter(labels).most_common() if name not in {NONE_GIVEN, THE_REST}]
    found = dict(zip(frequent, zip(PALETTE, MARKERS, strict=True), strict=False))
    for name, marker in ((THE_REST, "x"), (NONE_GIVEN, "cross")):
        if name in labels:
            found[name] = (OTHERS, marker)
    return found
