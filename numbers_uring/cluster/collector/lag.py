"""How far owners are behind their streams: asks the NATS server for one after the other."""

import asyncio
from collections.abc import Sequence

from numbers_uring.cluster.collector.owner import PartitionOwner
from numbers_uring.limits import LAG_INTERVAL_S, LAG_PAUSE_S


async def tend_lag(owners: Sequence[PartitionOwner]) -> None:
    """Have each owner ask every LAG_INTERVAL_S, or more rarely where there are very many."""
    pause_s = max(LAG_INTERVAL_S / len(owners), LAG_PAUSE_S)
    while True:
        for owner in owners:
            await asyncio.sleep(pause_s)
            await owner.ask_lag()
