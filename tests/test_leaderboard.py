"""Tables of README, docs and the leaderboard are those of the committed results."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPO


def check(*options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, REPO / "benchmarks" / "leaderboard.py", "--check", *options]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


def test_tables_are_those_of_the_results() -> None:
    done = check()
    assert done.returncode == 0, done.stderr


def test_a_number_that_is_not_measured_is_found(tmp_path: Path) -> None:
    for folder in ("docs", "benchmarks"):
        (tmp_path / folder).mkdir()
    for page in (*REPO.glob("docs/*.md"), REPO / "README.md", REPO / "benchmarks" / "LEADERBOARD.md"):
        shutil.copy(page, tmp_path / page.relative_to(REPO))
    page = tmp_path / "docs" / "accuracy.md"
    page.write_text(page.read_text(encoding="utf-8").replace("-0.41 at 1.49x", "-0.04 at 1.49x"), encoding="utf-8")
    done = check("--root", tmp_path)
    assert done.returncode == 1
    assert "docs/accuracy.md: the table 'accuracy/with-data'" in done.stderr
