"""The dashboard for Grafana: by the schema of Grafana's own library, and what it shows at first."""

import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
OF_CLUSTERS = ("numbers_uring_forward", "numbers_uring_collector")


def lost(written: Any, read: Any, path: str = "") -> Iterator[str]:
    """Yield the places where what Grafana's library has read is not what is written."""
    if isinstance(written, dict) and isinstance(read, dict):
        for name, value in written.items():
            yield from lost(value, read.get(name), f"{path}/{name}")
    elif isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        for n, pair in enumerate(zip(written, read, strict=True)):
            yield from lost(*pair, f"{path}/{n}")
    elif written != read:
        yield f"{path}: {written}, not {read}"


def read_by_grafana(dashboard: dict[str, Any]) -> Any:
    register_default_plugins()
    return json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))


def expressions(panel: dict[str, Any]) -> str:
    return " ".join(target["expr"] for target in panel["targets"])


def shown() -> list[dict[str, Any]]:
    """Return what a browser shows at first: all but the panels of collapsed rows."""
    return list(DASHBOARD["panels"])


def rows() -> list[dict[str, Any]]:
    return [panel for panel in shown() if panel["type"] == "row"]


def test_grafana_knows_each_word_of_it() -> None:
    assert list(lost(DASHBOARD, read_by_grafana(DASHBOARD))) == []


def test_a_word_that_grafana_does_not_know_would_be_noticed() -> None:
    wrong = json.loads(json.dumps(DASHBOARD))
    wrong["panels"][4]["fieldConfig"]["defaults"]["units"] = "s"
    rows_of_wrong = [panel for panel in wrong["panels"] if panel["type"] == "row"]
    rows_of_wrong[0]["panels"][0]["option"] = {}
    places = [each.partition(":")[0] for each in lost(wrong, read_by_grafana(wrong))]
    assert [place.rpartition("/")[2] for place in places] == ["units", "option"]


def test_what_only_a_cluster_has_is_in_rows_that_are_collapsed() -> None:
    assert all(row["collapsed"] and row["panels"] for row in rows())
    for panel in shown():
        if panel["type"] != "row":
            assert not any(name in expressions(panel) for name in OF_CLUSTERS), panel["title"]
    for row in rows():
        for panel in row["panels"]:
            assert any(name in expressions(panel) for name in OF_CLUSTERS), panel["title"]


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    nested = [panel for row in rows() for panel in row["panels"]]
    numbers = [panel["id"] for panel in (*shown(), *nested)]
    assert len(numbers) == len(set(numbers))
    for together in (shown(), *([row, *row["panels"]] for row in rows())):
        for one, other in combinations((panel["gridPos"] for panel in together), 2):
            assert (
                one["x"] + one["w"] <= other["x"]
                or other["x"] + other["w"] <= one["x"]
                or one["y"] + one["h"] <= other["y"]
                or other["y"] + other["h"] <= one["y"]
            ), (one, other)
