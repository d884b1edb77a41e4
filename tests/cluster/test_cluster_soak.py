"""A whole cluster on three NATS servers under load, which is hurt round after round.

Clients note which connections were closed with a FIN: so what was acknowledged to them can be
compared with what became of it, whatever has happened since.
"""

import os
import random
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.rounds.faults import KINDS, kinds
from support.rounds.judge import Judge
from support.rounds.parts import Cluster

ROUNDS = int(os.environ.get("CLUSTER_ROUNDS", "5"))
SEED = int(os.environ.get("CLUSTER_SEED", random.randrange(2**32)))
HOLD_S = float(os.environ.get("CLUSTER_HOLD_S", "1"))
"""How long a fault lasts at most, after what is waited for."""

ONLY = os.environ.get("CLUSTER_ONLY", "")
"""Play only the kinds of rounds whose names contain this."""


def play(cluster: Cluster, kind: str) -> None:
    """Hurt the cluster, wait until it goes on, heal it, and wait again."""
    for copy in cluster.copies:
        copy.back_up()
    pause = threading.Event()
    pause.wait(cluster.chance.uniform(0, 0.3))  # Any moment will do.
    faults = [fault(cluster) for fault in KINDS[kind]]
    for fault in faults:
        next(fault)
    if len(faults) == 1 and cluster.chance.random() < 0.7:
        cluster.wait_for_any_growth()  # One copy, one node and two servers are enough.
    pause.wait(cluster.chance.uniform(0, HOLD_S))
    cluster.chance.shuffle(faults)
    for fault in faults:
        assert next(fault, "healed") == "healed"
    cluster.wait_for_growth()


@pytest.mark.timeout(7200)
def test_whatever_happens_each_acknowledged_number_is_in_each_copy_once(tmp_path: Path) -> None:
    print(f"CLUSTER_SEED={SEED} CLUSTER_ROUNDS={ROUNDS}")
    chance = random.Random(SEED)
    with ExitStack() as running:
        cluster = Cluster(tmp_path, chance, running)
        print("without some faults:" if cluster.lacks else "", *cluster.lacks)
        judge = Judge(cluster)
        cluster.wait_for_growth()
        left: list[str] = []
        for number in range(ROUNDS):
            left = left or chance.sample(possible := kinds(cluster, ONLY), len(possible))
            kind = left.pop()
            begin_s = time.monotonic()
            play(cluster, kind)
            judge.look()
            print(f"round {number}, {kind}: {time.monotonic() - begin_s:.1f} s", flush=True)
        cluster.stop_clients()
        for node in cluster.nodes:
            node.stop()
        cluster.wait_for_brokers()
        judge.wait_for_all()
        for copy in cluster.copies:
            copy.stop()
        judge.look()
        judge.judge_sessions()
        print(dict(cluster.tally))
