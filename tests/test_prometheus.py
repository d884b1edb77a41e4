"""A real Prometheus that scrapes a real server: what deploy/ asks of the metrics is there."""

import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from support import DEADLINE_S, ServerProcess, lines, wait_until

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
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
    """The configuration in deploy/, at another address and in shorter intervals."""

    def __init__(self, folder: Path, target: str) -> None:
        configuration = (DEPLOY / "prometheus.yml").read_text()
        for theirs, ours in (("127.0.0.1:4001", target), ("15s", "250ms")):
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
def url(server: ServerProcess) -> str:
    found = re.search(r"metrics on (http://\S+)", server.stderr)
    assert found
    return found[1]


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory, url: str) -> Iterator[Prometheus]:
    """A Prometheus that has scraped the server at least twice."""
    target = url.removeprefix("http://").removesuffix("/metrics")
    prometheus = Prometheus(tmp_path_factory.mktemp("prometheus"), target)
    try:
        wait_until(prometheus.is_ready, "Prometheus")
        scrapes = 'sum(count_over_time(up{job="numbers-uring"}[1m]))'
        wait_until(
            lambda: (found := prometheus.query(scrapes)) and float(found[0]["value"][1]) > 2,
            "the scrapes",
        )
        yield prometheus
    finally:
        prometheus.process.terminate()
        prometheus.process.wait(DEADLINE_S)


def dashboard_expressions() -> list[str]:
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    for variable, value in (("$__rate_interval", "10s"), ("$job", ".*"), ("$instance", ".*")):
        assert any(variable in expression for expression in found)
        found = [expression.replace(variable, value) for expression in found]
    return found


def alert_expressions() -> list[str]:
    text = (DEPLOY / "prometheus-alerts.yml").read_text()
    return re.findall(r"^ +expr: (.+)$", text, re.MULTILINE)


def test_the_exposition_keeps_to_the_conventions(url: str) -> None:
    with urllib.request.urlopen(url, timeout=DEADLINE_S) as answer:
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
            r"label_values\(([a-z_]+)\b.*, (\w+)\)", variables[name]["definition"]
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


def test_each_alert_is_evaluated_and_none_fires(prometheus: Prometheus) -> None:
    def alerts() -> list[Any]:
        groups = prometheus.ask("rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    wait_until(lambda: all(alert["health"] == "ok" for alert in alerts()), "the evaluation")
    assert len(alerts()) == len(alert_expressions()) > 0
    assert {alert["state"] for alert in alerts()} == {"inactive"}


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
