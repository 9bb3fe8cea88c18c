"""Counter-based randomness: every draw is a function of what it is for, not of what came before.

The permutation of an epoch comes from (seed, "permutation", epoch), the noise of a step from
(seed, "step", step), the noise of a held-out block from (seed, "block", index). Nothing has
to be saved, and any step can be replayed alone.
"""

__all__ = ["draw_key", "generator", "seeded"]

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import torch


def draw_key(*counters: int | str) -> int:
    """A 63-bit seed that depends on every counter and on their order.

    Example:
        >>> draw_key(0, "step", 7) == draw_key(0, "step", 7)
        True
        >>> draw_key(0, "step", 7) == draw_key(7, "step", 0)
        False
    """
    digest = blake2b(repr(counters).encode(), digest_size=8).digest()

    return int.from_bytes(digest, "big") >> 1


def generator(*counters: int | str) -> torch.Generator:
    """A CPU generator seeded by the counters: the same numbers whatever the device."""
    return torch.Generator().manual_seed(draw_key(*counters))


@contextmanager
def seeded(*counters: int | str, device: torch.device | None = None) -> Iterator[None]:
    """Runs a block on torch's global generators seeded by the counters, then restores them.

    Args:
        counters: What the block's draws are for.
        device: The device that the block draws on, besides the CPU.
    """
    cuda = [device] if device is not None and device.type == "cuda" else []

    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(draw_key(*counters))
        yield
