"""The documentation: every command in it runs, every link leads somewhere, no option is missing."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from prometheus_client.registry import Collector

from numbers_uring.cli.cluster import cluster
from numbers_uring.cli.commands import cli
from numbers_uring.cluster.collector.metrics import TABLE as COLLECTORS_TABLE
from numbers_uring.cluster.collector.metrics import CollectorsCounters
from numbers_uring.metrics.families import TableCollector
from numbers_uring.server.metrics import NODE_TABLE, Counters
from support import docs_runner, docs_stubs
from support.docs_pages import PAGES, ROOT, anchors, blocks, commands, links, name, without_blocks
from support.docs_stubs import STAND_INS
from support.logs import REPORT, lines

WITH_COMMANDS = [page for page in PAGES if blocks(page.read_text())]
NEEDS = {
    "docs/metrics.md": ["curl", "prometheus", "promtool"],
    "docs/operating.md": ["pgrep", "sysctl", "taskset"],
    "docs/packaging.md": ["man"],
    "docs/profiling.md": ["perf", "sysctl"],
    "docs/security.md": ["haproxy", "nft", "openssl"],
    "docs/systemd.md": ["systemd-analyze", "systemd-sysusers"],
    "docs/troubleshooting.md": ["ss", "sysctl"],
}
"""The programs, beside those that every Linux has, without which a page can't be tried."""
GIVEN = {"docs/troubleshooting.md": {"numbers.log": lines(range(5))}}
"""What a page takes for granted to be there."""
VENV = "numbers-uring-venv"
"""Which one page makes, and others use."""
LAST_REPORT = {"README.md": 10_000_002, "docs/security.md": 2}
"""How many unique numbers reached the last server of a page, where its clients are the page's."""
README = (ROOT / "README.md").read_text()
OF_ENGINES = {"--env", "--format", "--health-cmd", "--init", "--security-opt", "--ulimit"}
"""Options of container engines that the pages speak of."""
cli.load_all()
COMMANDS: dict[str, click.Command] = {
    **cli.commands,
    **{f"cluster {command}": each for command, each in cluster.commands.items()},
}
OPTIONS_OF = ("serve", "load", "check", "doctor", "collect", "cluster init", "cluster status")

pytestmark = pytest.mark.timeout(1200)  # Whole pages, on a busy machine.


def run_page(page: Path, tmp_path: Path) -> list[dict[str, Any]]:
    """Run the commands of a page in order, in a checkout that is made of links to ours.

    Returns the code, stdout and stderr of each.
    """
    folder, state, scratch = (tmp_path / part for part in ("checkout", "state", "scratch"))
    for part in (folder, state, scratch):
        part.mkdir()
    for path in ROOT.iterdir():
        if path.name not in {".venv", "build", "dist", "numbers.log"}:
            (folder / path.name).symlink_to(path)
    for file, data in GIVEN.get(name(page), {}).items():
        (folder / file).write_bytes(data)
    stand_ins = state / "bin"
    docs_stubs.install(stand_ins)
    for venv in (".venv", *([] if f"venv {VENV}" in page.read_text() else [VENV])):
        (folder / venv).mkdir()
        (folder / venv / "bin").symlink_to(stand_ins)
    specification = tmp_path / "specification.json"
    todo = [command for block, _ in blocks(page.read_text()) for command in commands(block)]
    specification.write_text(
        json.dumps(
            {
                "folder": str(folder),
                "scratch": str(scratch),
                "commands": [{"text": command.text, "stays": command.stays} for command in todo],
            }
        )
    )
    path_list = [stand_ins, Path(sys.executable).parent, os.environ["PATH"], "/usr/sbin", "/sbin"]
    done = subprocess.run(
        [
            *("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *(sys.executable, docs_runner.__file__, str(specification)),
        ],
        capture_output=True,
        check=False,
        env={
            **os.environ,
            "DOCS_STATE": str(state),
            "PATH": ":".join(map(str, path_list)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": str(ROOT / "tests"),
        },
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    failed = state / "failed"
    assert not failed.exists(), failed.read_text()
    results: list[dict[str, Any]] = json.loads(done.stdout)
    return results


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name)
def test_every_command_of_a_page_runs(page: Path, namespaces: None, tmp_path: Path) -> None:
    for program in NEEDS.get(name(page), []):
        if shutil.which(program) is None:
            pytest.skip(f"{name(page)} needs {program}, which is not installed")
    results = run_page(page, tmp_path)
    left = iter(results)
    for block, output in blocks(page.read_text()):
        said = ""
        for command in commands(block):
            result = next(left)
            assert result["code"] == 0, f"{command.text}{result['stdout']}{result['stderr']}"
            said += result["stdout"]
        if output is not None:
            assert re.fullmatch(output, said, re.DOTALL), f"{block}{said}"
    assert next(left, None) is None
    if name(page) in LAST_REPORT:
        reports = [report for result in results for report in REPORT.findall(result["stdout"])]
        assert int(reports[-1][-1]) == LAST_REPORT[name(page)]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_is_run_or_has_no_commands(page: Path) -> None:
    fences = re.findall(r"^ *(```.*)$", page.read_text(), re.MULTILINE)
    assert set(fences[::2]) <= {"```sh", "```text", "```yaml", "```ini"}
    assert set(fences[1::2]) <= {"```"}


def test_each_stand_in_is_needed() -> None:
    text = "".join(block for page in PAGES for block, _ in blocks(page.read_text()))
    for program in STAND_INS:
        assert re.search(rf"(?:^|/){program}\b", text, re.MULTILINE), program


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_every_page_can_be_found() -> None:
    index = {Path(link).name for link in links((ROOT / "docs" / "README.md").read_text())}
    assert {page.name for page in PAGES} <= index
    assert "docs/README.md" in links(README)


@pytest.mark.parametrize("command", OPTIONS_OF)
def test_every_option_is_in_the_documentation(command: str) -> None:
    text = "".join(page.read_text() for page in PAGES)
    for parameter in COMMANDS[command].params:
        if isinstance(parameter, click.Option):
            for option in parameter.opts:
                if option.startswith("--"):
                    assert re.search(rf"`[^`\n]*{option}\b", text), f"{command} {option}"


@pytest.mark.parametrize("command", ["serve", "collect", "cluster init", "cluster status"])
def test_options_are_named_in_the_environment_as_they_are_spelled(command: str) -> None:
    """What a parameter is called is what its variable is called."""
    for parameter in COMMANDS[command].params:
        if isinstance(parameter, click.Option) and parameter.name not in {"as_json", "version"}:
            spelled = [option.lstrip("-").replace("-", "_") for option in parameter.opts]
            assert parameter.name in spelled


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_options_within_the_text_exist(page: Path) -> None:
    ours = {
        option for command in COMMANDS.values() for each in command.params for option in each.opts
    }
    for option in re.findall(r"`(--[a-z-]+)", without_blocks(page.read_text())):
        assert option in ours | OF_ENGINES | {"--help"}, option


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_within_the_text_exist(page: Path) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for code in re.findall(r"`([^`\n]+)`", without_blocks(page.read_text())):
        if made := re.match(r"make ([a-z-]+)", code):
            assert made[1] in targets, code
        if ours := re.match(r"numbers-uring ((?:cluster )?[a-z]+)(.*)", code):
            known = {option for each in COMMANDS[ours[1]].params for option in each.opts}
            assert set(re.findall(r"--[a-z-]+", ours[2])) <= known | {"--help"}, code


@pytest.mark.parametrize(
    "collector",
    [
        TableCollector(NODE_TABLE, lambda: Counters(connections_max=0)),
        TableCollector(COLLECTORS_TABLE, CollectorsCounters),
    ],
    ids=["server", "collectors"],
)
def test_every_metric_is_in_the_documentation(collector: Collector) -> None:
    listed = re.findall(r"`(numbers_uring_\w+)", (ROOT / "docs" / "metrics.md").read_text())
    suffix = {"counter": "_total", "info": "_info"}
    for family in collector.collect():
        assert family.name + suffix.get(family.type, "") in listed


def test_no_page_expects_pip_in_the_path_or_bash_where_it_does_not_say_so() -> None:
    """A new Debian has no pip, and only bash has /dev/tcp; `make install-check` takes the steps."""
    for page in WITH_COMMANDS:
        text = page.read_text()
        for block, _ in blocks(text):
            assert not re.search(r"^(pip|python) ", block, re.MULTILINE), f"{name(page)}: {block}"
            if "/dev/tcp/" in block:
                before = text[: text.index(block)].rpartition("\n\n")[0]
                assert "with bash" in before.rpartition("\n\n")[2], f"{name(page)}: {block}"


def test_the_readme_names_the_packages_that_the_tests_get() -> None:
    installed = re.search(r"packages=\(\n(.*?)\)", (ROOT / ".ci/run").read_text(), re.DOTALL)
    needed = re.search(r"the packages\n`([^`]*)` \(and `([^`]*)` for", README)
    assert installed is not None
    assert needed is not None
    assert sorted(installed[1].split()) == sorted((needed[1] + " " + needed[2]).split())


def test_the_readme_names_each_dependency() -> None:
    section = README.split("## Dependencies")[1].split("\n## ")[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for group in (project["dependencies"], *project["optional-dependencies"].values()):
        for requirement in group:
            package = re.split(r"\[|[>=]=", requirement)[0]
            assert re.search(rf"\b{package}\b", section), package
