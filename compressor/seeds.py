"""Seeds: numbers drawn for one purpose do not depend on what was drawn for another, or on where a run was cut off."""

import hashlib


def seed_of(*parts: int | str) -> int:
    """A seed of 63 bits out of whatever tells one draw from another: the recipe's seed, an epoch, a step.

    torch's generator on a CPU takes the lowest 32 bits alone, so that sums of the parts would not do.
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
