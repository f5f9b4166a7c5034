"""Chooses which utterances of a speaker are prompts for which, so that each is a prompt about equally often.

Takes positions and a seeded generator.
"""

import random
from collections.abc import Sequence


def speaker_pairs(members: Sequence[int], count: int, generator: random.Random) -> dict[int, list[int]]:
    """`count` distinct pairs of a speaker, prompts by target: all targets get a first prompt, then a second."""
    order = generator.sample(members, len(members))
    pairs: dict[int, list[int]] = {}
    offsets = generator.sample(range(1, len(order)), len(order) - 1) if len(order) > 1 else []
    for number in range(count):
        place, lap = number % len(order), number // len(order)
        prompt = order[(place + offsets[lap]) % len(order)]
        pairs.setdefault(order[place], []).append(prompt)
    return pairs


def cross_lingual_pairs(
    members: Sequence[int], languages: Sequence[str], count: int, generator: random.Random
) -> dict[int, list[int]]:
    """The same for a speaker of several languages: a target's first prompt is in another one, its second in the same.

    When one kind runs out, the other is used. `languages` is indexed by position.
    """
    order = generator.sample(members, len(members))
    own: dict[str, list[int]] = {}
    for member in order:
        own.setdefault(languages[member], []).append(member)
    others = {language: [member for member in order if languages[member] != language] for language in own}
    ranks = {member: rank for group in own.values() for rank, member in enumerate(group)}
    pairs: dict[int, list[int]] = {}
    for number in range(count):
        target, lap = order[number % len(order)], number // len(order)
        same, other, rank = own[languages[target]], others[languages[target]], ranks[target]
        crossed = _crossed(lap, len(same) - 1, len(other))
        if _crossed(lap + 1, len(same) - 1, len(other)) > crossed:
            prompt = other[(rank + crossed) % len(other)]
        else:
            prompt = same[(rank + 1 + lap - crossed) % len(same)]
        pairs.setdefault(target, []).append(prompt)
    return pairs


def _crossed(laps: int, same: int, other: int) -> int:
    """The number of a target's first `laps` prompts that are in another language."""
    return min(max((laps + 1) // 2, laps - same), other)
