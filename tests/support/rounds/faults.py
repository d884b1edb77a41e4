"""The faults of the rounds. Each hurts the cluster, yields, and heals what does not heal itself.

While one of the NATS servers is hurt, the other two have to be whole: so most begin by waiting for
that, and no round has two of those.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator

from numbers_uring.limits import LINE_BYTES
from support.broker import Broker
from support.rounds.parts import HEALED_S, PARTITIONS, STREAMS, Cluster, Copy
from support.stores import blocks, flip_bit
from support.waiting import wait_until

Fault = Callable[[Cluster], Iterator[None]]

# Nodes.


def kill_node(cluster: Cluster) -> Iterator[None]:
    node = cluster.chance.choice(cluster.nodes)
    node.kill()
    yield
    node.start()


def kill_node_that_closes(cluster: Cluster) -> Iterator[None]:
    """Kill one when it has just closed a connection: what it said by that has to hold."""
    node = cluster.chance.choice(cluster.nodes)
    closed, end_s = node.closed, time.monotonic() + HEALED_S
    while node.closed == closed:
        assert time.monotonic() < end_s, f"{node.name} closes no connection"
    node.kill()
    yield
    node.start()


def stop_node(cluster: Cluster) -> Iterator[None]:
    node = cluster.chance.choice(cluster.nodes)
    node.stop()
    yield
    node.start()


def suspend_node(cluster: Cluster) -> Iterator[None]:
    node = cluster.chance.choice(cluster.nodes)
    node.suspend()
    yield
    node.resume()


# Collectors.


def kill_collector(cluster: Cluster) -> Iterator[None]:
    copy = cluster.chance.choice(cluster.copies)
    copy.kill()
    yield
    copy.start()


def kill_collector_that_appends(cluster: Cluster) -> Iterator[None]:
    """Kill one when a log has just grown, so most often before the record of that."""
    copy = cluster.chance.choice(cluster.copies)
    log = copy.log(cluster.chance.randrange(PARTITIONS))
    size, end_s = log.stat().st_size, time.monotonic() + HEALED_S
    while log.stat().st_size == size:  # No pause: what is aimed at is over in a millisecond.
        assert time.monotonic() < end_s, "the log does not grow"
    copy.kill()
    yield
    copy.start()


def suspend_collector(cluster: Cluster) -> Iterator[None]:
    copy = cluster.chance.choice(cluster.copies)
    copy.suspend()
    yield
    copy.resume()


def restore_logs(cluster: Cluster) -> Iterator[None]:
    """Stop a collector and change its files as an operator, or a power cut, does."""
    copy = cluster.chance.choice(cluster.copies)
    end = cluster.chance.choice([copy.kill, copy.stop])
    end()
    changes = _CHANGES + _CHANGES_WITH_THE_WHOLE_STREAM * (not cluster.trims)
    for partition in range(PARTITIONS):
        change = cluster.chance.choice(changes)
        change(cluster, copy, partition)
        cluster.tally[f"files: {change.__name__.strip('_')}"] += 1
    yield
    copy.start()


def _older_log_and_index(_: Cluster, copy: Copy, partition: int) -> None:
    copy.restore(copy.log(partition), copy.index(partition))


def _older_log(_: Cluster, copy: Copy, partition: int) -> None:
    copy.restore(copy.log(partition))


def _older_index(_: Cluster, copy: Copy, partition: int) -> None:
    copy.restore(copy.index(partition))


def _no_index(_: Cluster, copy: Copy, partition: int) -> None:
    copy.index(partition).unlink()


def _nothing(_: Cluster, copy: Copy, partition: int) -> None:
    copy.index(partition).unlink()
    copy.log(partition).unlink()


def _taken_from_another(cluster: Cluster, copy: Copy, partition: int) -> None:
    """Copy the files of another copy while it runs: the index first, so that the log covers it."""
    other = next(other for other in cluster.copies if other is not copy)
    shutil.copyfile(other.index(partition), copy.index(partition))
    shutil.copyfile(other.log(partition), copy.log(partition))


def _shorter_log(cluster: Cluster, copy: Copy, partition: int) -> None:
    size = copy.log(partition).stat().st_size
    os.truncate(copy.log(partition), max(0, size - cluster.chance.randrange(100 * LINE_BYTES)))


def _torn_log(cluster: Cluster, copy: Copy, partition: int) -> None:
    """Leave zeros at the end, where a power cut kept the log's size but not what was there."""
    with copy.log(partition).open("ab") as log:
        log.write(bytes(cluster.chance.randrange(1, 100)))


def _torn_index(cluster: Cluster, copy: Copy, partition: int) -> None:
    size = copy.index(partition).stat().st_size
    os.truncate(copy.index(partition), max(0, size - cluster.chance.randrange(200)))


_CHANGES: list[Callable[[Cluster, Copy, int], None]] = [
    _older_log_and_index,
    _older_log,
    _older_index,
    _taken_from_another,
    _shorter_log,
    _torn_log,
    _torn_index,
]

_CHANGES_WITH_THE_WHOLE_STREAM: list[Callable[[Cluster, Copy, int], None]] = [_no_index, _nothing]


def fill_log_disk(cluster: Cluster) -> Iterator[None]:
    copy = cluster.chance.choice(cluster.copies)
    assert copy.disk is not None
    copy.disk.fill()
    # It says so once it has tried to write.
    process = copy.process
    assert process is not None
    wait_until(lambda: "space" in process.stderr, "a line about the full disk", HEALED_S)
    yield
    copy.disk.free()


# NATS servers.


def _leader(cluster: Cluster) -> Broker:
    """Return the leader of a stream, while all three are whole."""
    cluster.wait_for_brokers()
    return cluster.leader(cluster.chance.choice(STREAMS))


def _back(broker: Broker) -> None:
    broker.start()
    broker.wait_ready()


def kill_server(cluster: Cluster) -> Iterator[None]:
    broker = _leader(cluster)
    broker.kill()
    yield
    _back(broker)


def suspend_server(cluster: Cluster) -> Iterator[None]:
    broker = _leader(cluster)
    broker.suspend()
    yield
    broker.resume()
    broker.wait_ready()


def replace_server(cluster: Cluster) -> Iterator[None]:
    """Lose a server with its disk, and start an empty one in its place."""
    broker = _leader(cluster)
    broker.kill()
    _empty(cluster, broker)
    yield
    _back(broker)
    cluster.wait_for_brokers()


def _empty(cluster: Cluster, broker: Broker) -> None:
    cluster.store_disks[broker.name].empty()


def damage_server(cluster: Cluster) -> Iterator[None]:
    """Flip a bit somewhere in what a server stores; replace it, as its operator would."""
    broker = _leader(cluster)
    runs = cluster.chance.random() < 0.5
    if not runs:
        broker.kill()
    for stream in STREAMS[:PARTITIONS]:
        path = cluster.chance.choice(blocks(broker, stream))
        if size := path.stat().st_size:
            flip_bit(path, cluster.chance.randrange(size))
    if not runs:
        _back(broker)
    yield
    cluster.wait_for_brokers()
    broker.kill()
    _empty(cluster, broker)
    _back(broker)
    cluster.wait_for_brokers()


def fill_server_disk(cluster: Cluster) -> Iterator[None]:
    """Fill a server's disk. It does not go on by itself when there is space again."""
    broker = _leader(cluster)
    disk, said_bytes = cluster.store_disks[broker.name], broker.log.stat().st_size
    disk.fill()

    def says_so() -> bool:
        return "no space left" in broker.log.read_text()[said_bytes:]

    wait_until(says_so, "the server to notice that its disk is full", HEALED_S)
    yield
    disk.free()
    broker.kill()
    _back(broker)


# Links.


def cut_server(cluster: Cluster) -> Iterator[None]:
    """Cut a server off from everything, or let it only hear, or only speak."""
    broker = _leader(cluster)
    assert cluster.net is not None
    assert broker.host is not None
    _cut(cluster, broker.host.number, [host.number for host in cluster.net.hosts])
    yield
    cluster.net.mend()


def cut_part(cluster: Cluster) -> Iterator[None]:
    """Cut a node or a collector off from all servers, or from some."""
    part = cluster.chance.choice(cluster.parts)
    assert cluster.net is not None
    assert part.host is not None
    servers = cluster.chance.sample(range(3), cluster.chance.randrange(1, 4))
    _cut(cluster, part.host.number, servers)
    yield
    cluster.net.mend()


def _cut(cluster: Cluster, one: int, others: list[int]) -> None:
    net = cluster.net
    assert net is not None
    sends, hears = cluster.chance.choice([(True, True), (True, False), (False, True)])
    cluster.tally[f"links cut: {'sends' * sends} {'hears' * hears}"] += 1
    net.cut(
        net.hosts[one],
        *(net.hosts[other] for other in others if other != one),
        sends=sends,
        hears=hears,
    )


# Everything.


def upgrade(cluster: Cluster) -> Iterator[None]:
    """Restart all parts in order, one after the other, as for a new version."""
    for broker in cluster.brokers:
        cluster.wait_for_brokers()
        broker.stop()
        _back(broker)
    for part in cluster.parts:
        part.stop()
        part.start()
    yield


KINDS: dict[str, tuple[Fault, ...]] = {
    "a node is killed": (kill_node,),
    "a node is killed behind a close": (kill_node_that_closes,),
    "a node stops": (stop_node,),
    "a node is suspended": (suspend_node,),
    "a collector is killed": (kill_collector,),
    "a collector is killed between log and record": (kill_collector_that_appends,),
    "a collector is suspended": (suspend_collector,),
    "logs are put back": (restore_logs,),
    "a log's disk is full": (fill_log_disk,),
    "a server is killed": (kill_server,),
    "a server is suspended": (suspend_server,),
    "a server is replaced": (replace_server,),
    "a server's disk has flipped bits": (damage_server,),
    "a server's disk is full": (fill_server_disk,),
    "a server is cut off": (cut_server,),
    "a node or a collector is cut off": (cut_part,),
    "a node and a collector are killed": (kill_node, kill_collector_that_appends),
    "a collector and a server are killed": (kill_collector, kill_server),
    "a server is suspended and a node is killed": (suspend_server, kill_node),
    "logs are put back and a server is suspended": (restore_logs, suspend_server),
    "a collector is suspended and a server is cut off": (suspend_collector, cut_server),
    "everything is upgraded": (upgrade,),
}
"""What the rounds are about."""

NEED_NETWORK: set[Fault] = {cut_server, cut_part}
NEED_DISKS: set[Fault] = {fill_log_disk, replace_server, damage_server, fill_server_disk}


def kinds(cluster: Cluster, only: str = "") -> list[str]:
    """Return what can be played here; only those with these words in their names."""
    without: set[Fault] = set()
    if cluster.net is None:
        without |= NEED_NETWORK
    if not cluster.has_disks:
        without |= NEED_DISKS
    return [kind for kind, faults in KINDS.items() if only in kind and not without & {*faults}]
