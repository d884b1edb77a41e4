"""How far collectors are behind their streams: asks the NATS server for one after the other."""

import asyncio
from collections.abc import Sequence

from numbers_uring.cluster.collector.collector import PartitionCollector
from numbers_uring.limits import LAG_INTERVAL_S, LAG_PAUSE_S


async def tend_lag(collectors: Sequence[PartitionCollector]) -> None:
    """Have each collector ask every LAG_INTERVAL_S, or more rarely where there are very many."""
    pause_s = max(LAG_INTERVAL_S / len(collectors), LAG_PAUSE_S)
    while True:
        for collector in collectors:
            await asyncio.sleep(pause_s)
            await collector.ask_lag()
