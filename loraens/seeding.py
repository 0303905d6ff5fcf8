"""Seeds by counter: every random draw is named by its member's seed and its purpose, so nothing
depends on what ran before.
"""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, such as ("dropout", epoch, batch). Different purposes give
    unrelated seeds.
    """
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
