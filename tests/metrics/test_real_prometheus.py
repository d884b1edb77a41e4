"""A real Prometheus that scrapes a server, node and collector: what deploy/ asks for is there."""

import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from support.broker import broker_with_cluster
from support.logs import lines
from support.metrics_client import url_of
from support.processes import CommandProcess, ServerProcess
from support.waiting import DEADLINE_S, wait_until

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
PANELS = [panel for each in DASHBOARD["panels"] for panel in each.get("panels", [each])]
"""Those in collapsed rows included."""
NAME = re.compile(r"\b(?:numbers_uring|process)_[a-z_]+|\bup\b")

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus is not installed",
)


def promtool(*arguments: str, cwd: Path = DEPLOY, stdin: str = "") -> None:
    done = subprocess.run(
        ["promtool", *arguments],
        capture_output=True,
        check=False,
        cwd=cwd,
        input=stdin,
        text=True,
        timeout=DEADLINE_S,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr


class Prometheus:
    """The configuration in deploy/, at other addresses and in shorter intervals."""

    def __init__(self, folder: Path, servers: list[str], collectors: list[str]) -> None:
        configuration = (DEPLOY / "prometheus.yml").read_text()
        for theirs, ours in (
            ('["127.0.0.1:4001"]', json.dumps(servers)),
            ('["127.0.0.1:4002"]', json.dumps(collectors)),
            ("15s", "250ms"),
        ):
            assert theirs in configuration
            configuration = configuration.replace(theirs, ours)
        (folder / "prometheus.yml").write_text(configuration)
        shutil.copy(DEPLOY / "prometheus-alerts.yml", folder)
        said = folder / "said"
        with said.open("w") as stderr:
            self.process = subprocess.Popen(
                [
                    *("prometheus", "--web.listen-address=127.0.0.1:0"),
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        self._said = said
        self._port = ""

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self._said.read_text()
        found = re.search(r'"Listening on" address=127.0.0.1:(\d+)', self._said.read_text())
        self._port = found[1] if found else ""
        return bool(found) and "ready to receive web requests" in self._said.read_text()

    def ask(self, what: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self._port}/api/v1/{what}?{urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=DEADLINE_S) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[Any]:
        found = self.ask("query", query=expression)["result"]
        assert isinstance(found, list)
        return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("server") / "numbers.log"
    with ServerProcess(log, "--metrics", "127.0.0.1:0") as server:
        yield server
        assert server.terminate() == 0


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[ServerProcess, CommandProcess]]:
    """A node, and the collector of all partitions."""
    folder = tmp_path_factory.mktemp("cluster")
    metrics = ("--metrics", "127.0.0.1:0")
    with broker_with_cluster(folder / "broker", partitions=2) as broker, ExitStack() as running:
        collector = CommandProcess(
            *("collect", "--nats", broker.url, "--partitions", "0-1", "--log-dir", str(folder)),
            *metrics,
        )
        running.enter_context(collector)
        collector.wait_for("collecting partitions 0-1")
        forward = ("--forward", broker.url, "--partitions", "2")
        node = ServerProcess(folder / "no-log", *forward, *metrics, has_log=False)
        yield running.enter_context(node), collector


@pytest.fixture(scope="module")
def urls(
    server: ServerProcess, cluster: tuple[ServerProcess, CommandProcess]
) -> tuple[str, str, str]:
    """Where the metrics of the server, the node and the collector are."""
    return url_of(server), url_of(cluster[0]), url_of(cluster[1])


@pytest.fixture(scope="module")
def prometheus(
    tmp_path_factory: pytest.TempPathFactory, urls: tuple[str, str, str]
) -> Iterator[Prometheus]:
    """A Prometheus that has scraped all of them at least twice."""
    targets = [url.removeprefix("http://") for url in urls]
    prometheus = Prometheus(tmp_path_factory.mktemp("prometheus"), targets[:2], targets[2:])
    try:
        wait_until(prometheus.is_ready, "Prometheus")
        scrapes = "count_over_time(up[1m]) > 2"
        wait_until(
            lambda: len(prometheus.query(scrapes)) == len(urls),
            "the scrapes",
        )
        yield prometheus
    finally:
        prometheus.process.terminate()
        prometheus.process.wait(DEADLINE_S)


def dashboard_expressions() -> list[str]:
    found = [target["expr"] for panel in PANELS for target in panel["targets"]]
    for variable, value in (("$__rate_interval", "10s"), ("$job", ".*"), ("$instance", ".*")):
        assert any(variable in expression for expression in found)
        found = [expression.replace(variable, value) for expression in found]
    return found


def alert_expressions() -> list[str]:
    text = (DEPLOY / "prometheus-alerts.yml").read_text()
    return re.findall(r"^ +expr: (.+)$", text, re.MULTILINE)


def test_the_expositions_keep_to_the_conventions(urls: tuple[str, str, str]) -> None:
    for url in urls:
        with urllib.request.urlopen(f"{url}/metrics", timeout=DEADLINE_S) as answer:
            promtool("check", "metrics", stdin=answer.read().decode())


@pytest.mark.parametrize("expression", dashboard_expressions())
def test_each_panel_of_the_dashboard_shows_something(
    prometheus: Prometheus, expression: str
) -> None:
    assert "$" not in expression
    assert prometheus.query(expression), expression


def test_the_dashboard_offers_what_there_is_to_choose_from(prometheus: Prometheus) -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance"]
    for name in ("job", "instance"):
        chosen = re.fullmatch(
            r"label_values\(([a-z_]+)\b.*, (\w+)\)", variables[name]["query"]["query"]
        )
        assert chosen
        assert prometheus.query(chosen[1])[0]["metric"][chosen[2]]


def test_every_metric_that_is_named_exists_and_every_one_of_ours_is_shown(
    prometheus: Prometheus,
) -> None:
    there = set(prometheus.ask("label/__name__/values"))
    shown = set(NAME.findall(" ".join(dashboard_expressions())))
    alerted = set(NAME.findall(" ".join(alert_expressions())))
    assert shown | alerted <= there
    assert shown >= {name for name in there if name.startswith("numbers_uring")}


UNALERTED = {
    "what clients send is theirs to decide": (
        *("numbers_uring_numbers_total", "numbers_uring_received_bytes_total"),
        *("numbers_uring_connections", "numbers_uring_connections_max"),
        "numbers_uring_connections_accepted_total",
    ),
    "a disk is watched by the host's own alerts, and a full one holds clients back": (
        *("numbers_uring_log_written_bytes_total", "process_cpu_seconds_total"),
        *("process_resident_memory_bytes", "process_virtual_memory_bytes"),
    ),
    "what fails shows in what is acknowledged, in flight and sent again": (
        "numbers_uring_forward_published_bytes_total",
    ),
    "a collector that is slow, for whatever reason, falls behind": (
        *("numbers_uring_collector_numbers_total", "numbers_uring_collector_position"),
        "numbers_uring_collector_received_messages_total",
        "numbers_uring_collector_received_bytes_total",
        "numbers_uring_collector_log_written_bytes_total",
        "numbers_uring_collector_log_write_seconds_total",
        "numbers_uring_collector_log_sync_seconds_total",
    ),
    "it names what runs": ("numbers_uring_info",),
}


def test_every_metric_has_an_alert_or_a_reason_to_have_none(prometheus: Prometheus) -> None:
    there = set(prometheus.ask("label/__name__/values"))
    ours = {name for name in there if name.startswith(("numbers_uring", "process_"))}
    alerted = set(NAME.findall(" ".join(alert_expressions())))
    unalerted = {name for names in UNALERTED.values() for name in names}
    assert ours == (alerted | unalerted) & ours
    assert not alerted & unalerted
    assert unalerted <= there


def test_each_alert_is_evaluated_and_none_fires(prometheus: Prometheus) -> None:
    def alerts() -> list[Any]:
        groups = prometheus.ask("rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    wait_until(lambda: all(alert["health"] == "ok" for alert in alerts()), "the evaluation")
    assert len(alerts()) == len(alert_expressions()) > 0
    assert [alert for alert in alerts() if alert["state"] != "inactive"] == []


def test_what_clients_send_arrives_in_prometheus(
    prometheus: Prometheus, server: ServerProcess
) -> None:
    server.send(lines([*range(100), *range(30)]))
    total = "sum by (result) (numbers_uring_numbers_total)"

    def arrived() -> dict[str, str]:
        return {row["metric"]["result"]: row["value"][1] for row in prometheus.query(total)}

    wait_until(lambda: arrived() == {"unique": "100", "duplicate": "30"}, "the numbers")


def test_the_alerts_fire_when_they_should(tmp_path: Path) -> None:
    promtool("check", "config", "prometheus.yml")
    shutil.copy(DEPLOY / "prometheus-alerts.yml", tmp_path)
    shutil.copy(Path(__file__).with_name("alerts.yml"), tmp_path)
    promtool("test", "rules", "alerts.yml", cwd=tmp_path)
