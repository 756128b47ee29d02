"""What processes take of the machine's memory, and whether it grows.

RSS of a tree counts a page once in each process that maps it, so it says too much: libraries and what was shared by a
fork stand in it several times. PSS shares such a page out among those that map it, so it adds up. Neither holds what
the kernel buffers in sockets.
"""

import statistics
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

MB = 1_000_000
NOISE_TIMES = 3.0
GROWTH_FLOOR_MB = 2.0


class Memory(NamedTuple):
    rss_mb: float
    pss_mb: float


class Trend(NamedTuple):
    """A straight line through samples."""

    mb_per_hour: float
    grown_mb: float
    """From its first point to its last."""
    noise_mb: float
    """Standard deviation of the samples around it."""

    @property
    def flat(self) -> bool:
        """No growth that the noise could not have made, or too little to tell from an allocator's habits."""
        return self.grown_mb <= max(GROWTH_FLOOR_MB, NOISE_TIMES * self.noise_mb)


def memory_of(pids: Iterable[int]) -> Memory:
    """Of these processes together; one that has ended counts nothing."""
    rss = pss = 0
    for pid in pids:
        with suppress(OSError):
            fields = parse_rollup(Path(f"/proc/{pid}/smaps_rollup").read_text())
            rss, pss = rss + fields["Rss"], pss + fields["Pss"]
    return Memory(rss / MB, pss / MB)


def parse_rollup(text: str) -> dict[str, int]:
    """`/proc/PID/smaps_rollup` in bytes by name."""
    lines = (line.split() for line in text.splitlines()[1:])
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}


def trend(times_s: Sequence[float], values_mb: Sequence[float]) -> Trend:
    """Least squares; three samples at least, at different times."""
    line = statistics.linear_regression(times_s, values_mb)
    rest = [y - line.slope * x - line.intercept for x, y in zip(times_s, values_mb, strict=True)]
    return Trend(line.slope * 3600, line.slope * (times_s[-1] - times_s[0]), statistics.pstdev(rest))
