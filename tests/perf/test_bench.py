"""Measuring, where a shell runs it as a job in the background."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.waiting import DEADLINE_S

PERF = Path(__file__).resolve().parents[2] / "perf"


@pytest.mark.skipif(shutil.which("perf") is None, reason="perf is not installed")
def test_counting_ends_in_a_job_that_ignores_sigint() -> None:
    program = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
import bench
bench.has_counters()
"""
    subprocess.run([sys.executable, "-c", program], cwd=PERF, check=True, timeout=DEADLINE_S / 2)
