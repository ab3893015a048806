"""A part of the campaign of mutated files, so that it goes on running: see `tests/fuzz`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="each try is a fork")
def test_a_hundred_tries_keep_every_promise() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--tries", "100", "--seed", "1"]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "100 tries in" in done.stdout
