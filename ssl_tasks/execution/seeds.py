"""Seeds of parts from the seed of the whole: independent streams without a shared generator."""

import hashlib


def derive_seed(seed: int, *names: object) -> int:
    """A seed below 2^63 that depends on the seed and on every name."""
    text = "\0".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
