"""Percentiles of what a load has measured, by nearest rank, where there are enough samples."""

from collections.abc import Sequence

from numbers_uring._native import lib
from numbers_uring.load.model import Latency

_SHARES = {"p50": (1, 2), "p90": (9, 10), "p99": (99, 100), "p999": (999, 1000)}
"""Each percentile as a fraction. It takes as many samples as the denominator says: with fewer, no
sample would be above the percentile, and it would only be the maximum under another name."""


def _ranks(samples: int) -> dict[str, int]:
    """Return the places, from 1, among sorted samples, of those there are enough samples for."""
    return {
        name: -(-samples * part // whole)
        for name, (part, whole) in _SHARES.items()
        if samples >= whole
    }


def exact_latency(times_ns: list[int]) -> Latency:
    if not times_ns:
        return Latency(samples=0)
    times_ns.sort()
    found = {name: times_ns[rank - 1] / 1e6 for name, rank in _ranks(len(times_ns)).items()}
    return Latency(samples=len(times_ns), max=times_ns[-1] / 1e6, **found)


def bucket_latency(counts: Sequence[int], max_ns: int) -> Latency:
    """Percentiles as the upper bounds of their buckets, which are 3 % wide."""
    samples = sum(counts)
    if not samples:
        return Latency(samples=0)
    found: dict[str, float] = {}
    ranks = _ranks(samples)
    seen = 0
    for bucket, count in enumerate(counts):
        seen += count
        for name in [name for name, rank in ranks.items() if rank <= seen]:
            del ranks[name]
            found[name] = min(lib.nu_latency_least_ns(bucket + 1), max_ns) / 1e6
    return Latency(samples=samples, max=max_ns / 1e6, **found)
