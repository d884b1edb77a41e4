"""Percentiles of what a load has measured, by nearest rank."""

import math
from collections.abc import Sequence

from numbers_uring._native import lib
from numbers_uring.load.model import Latency


def _ranks(samples: int) -> list[int]:
    """The places, from 1, of the percentiles among sorted samples: nearest rank."""
    return [max(1, math.ceil(samples * share)) for share in (0.5, 0.9, 0.99, 0.999)]


def _latency(samples: int, found_ns: Sequence[float], max_ns: float) -> Latency:
    p50, p90, p99, p999 = (value / 1e6 for value in found_ns)
    return Latency(samples=samples, p50=p50, p90=p90, p99=p99, p999=p999, max=max_ns / 1e6)


def exact_latency(times_ns: list[int]) -> Latency:
    if not times_ns:
        return Latency(samples=0)
    times_ns.sort()
    found = [times_ns[rank - 1] for rank in _ranks(len(times_ns))]
    return _latency(len(times_ns), found, times_ns[-1])


def bucket_latency(counts: Sequence[int], max_ns: int) -> Latency:
    """Percentiles as the upper bounds of their buckets, which are 3 % wide."""
    samples = sum(counts)
    if not samples:
        return Latency(samples=0)
    found: list[float] = []
    ranks = _ranks(samples)
    seen = 0
    for bucket, count in enumerate(counts):
        seen += count
        while len(found) < len(ranks) and seen >= ranks[len(found)]:
            found.append(min(lib.nu_latency_least_ns(bucket + 1), max_ns))
    return _latency(samples, found, max_ns)
