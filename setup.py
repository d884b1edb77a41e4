"""What pyproject.toml can't say: the extension, and files that are made of the built package."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from distutils.command.install_data import install_data
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(ROOT / "native"), str(ROOT / "share")]

from check_build import unsupported  # noqa: E402  (these three are found there alone)
from index_readme import index_readme  # noqa: E402
from numbers_uring import __version__  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()
SHARE = Path("build", "share")
NAME = "numbers-uring"


class BuildAnywhere(build_ext):
    """Keeps the folders of the building host out of the extension: it is the same from any folder.

    A Python that is not the system's has its own library folder among its linker's options, and
    debug information has the folders of all sources.
    """

    def get_ext_filename(self, fullname: str) -> str:
        # Python 3.15 puts the platform behind abi3, a name that earlier ones do not look for.
        name: str = super().get_ext_filename(fullname)  # type: ignore[no-untyped-call]
        return re.sub(r"\.abi3-[^/]*\.so$", ".abi3.so", name)

    def build_extensions(self) -> None:
        linker = self.compiler.linker_so
        self.compiler.linker_so = [word for word in linker if not word.startswith("-Wl,-rpath")]
        folders = {ROOT: ".", Path(self.build_temp).resolve(): "build"}
        if sys.base_prefix != "/usr":
            folders[Path(sys.base_prefix)] = "python"
        for extension in self.extensions:
            extension.extra_compile_args += [
                f"-ffile-prefix-map={folder}={name}" for folder, name in folders.items()
            ]
        super().build_extensions()


class InstallShare(install_data):
    """Makes the files below SHARE before they are installed: it takes the extension to do so."""

    def run(self) -> None:
        built = Path(self.get_finalized_command("build").build_lib).resolve()
        path = [str(built), str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        subprocess.run(
            [sys.executable, "share/build_share.py", SHARE],
            check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
        )
        super().run()


if problem := unsupported():
    sys.exit(problem)

# One wheel for all Pythons from 3.11 on. A free-threaded Python has no limited C interface.
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

setup(
    version=__version__,
    long_description=index_readme(README, PROJECT.get("urls", {}).get("Source"), __version__),
    long_description_content_type="text/markdown",
    options={"bdist_wheel": {} if FREE_THREADED else {"py_limited_api": "cp311"}},
    cffi_modules=["native/build_ffi.py:ffi"],
    cmdclass={"build_ext": BuildAnywhere, "install_data": InstallShare},
    data_files=[
        (f"share/{folder}", [str(SHARE / folder / file)])
        for folder, file in (
            ("man/man1", f"{NAME}.1"),
            ("bash-completion/completions", NAME),
            ("zsh/site-functions", f"_{NAME}"),
            ("fish/vendor_completions.d", f"{NAME}.fish"),
        )
    ],
)
