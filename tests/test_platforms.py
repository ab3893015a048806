"""What Windows and macOS lack is not asked for: the package works where those modules and functions are missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import graphs
from tests.conftest import REPO

ABSENT = ("fcntl", "grp", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty")
"""Modules that Windows has not."""

LESS = {
    "os": "fork forkpty getpgid getpgrp killpg nice posix_fadvise sched_getaffinity setsid sysconf statvfs",
    "signal": "SIGHUP SIGKILL SIGUSR1 SIGUSR2 SIGALRM SIGPIPE alarm pthread_kill pthread_sigmask setitimer sigwait",
}
"""What is missing there in others, but for what libraries use on this system."""

PREPARED = f"""
import os, signal, subprocess, sys
import runpy
for module in {ABSENT}:
    sys.modules[module] = None
subprocess.Popen.kill = lambda self, number=signal.SIGKILL: self.send_signal(number)  # as Windows ends a process
for module, names in {LESS}.items():
    for name in names.split():
        vars(sys.modules[module]).pop(name, None)
"""


def run(code: str, *arguments: object, path: Path = REPO) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PREPARED + code, *map(str, arguments)],
        cwd=path, env=os.environ | {"PYTHONPATH": str(path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_every_module_is_imported_and_helps() -> None:
    done = run(
        """
import importlib, pkgutil, trp_onnx
from click.testing import CliRunner
from trp_onnx.cli.main import main
left_out = "trp_onnx.training.worker", "trp_onnx.olive", "trp_onnx.__main__"  # Linux alone; Olive's; a program
for module in pkgutil.walk_packages(trp_onnx.__path__, "trp_onnx.", onerror=lambda name: None):
    if not module.name.startswith(left_out):
        importlib.import_module(module.name)
for name in ("", *main.commands):
    assert "Usage" in CliRunner().invoke(main, [*name.split(), "--help"]).output
print("all")
"""
    )
    assert done.stdout.endswith("all\n"), done.stderr


def test_a_network_is_compressed_and_timed_in_another_process(tmp_path: Path) -> None:
    net = graphs.conv_net(tmp_path / "net.onnx", channels=16)
    commands = [
        f"compress {net} -o {tmp_path / 'small.onnx'} --macs 0.7",
        f"bench {net} {tmp_path / 'small.onnx'} --rounds 2 --runtime python:{sys.executable}",
    ]
    for command in commands:
        done = run("runpy.run_module('trp_onnx', run_name='__main__')", *command.split())
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("link", [None, "../passes"], ids=["no link", "the link as a text"])
def test_a_checkout_without_links_has_the_passes(tmp_path: Path, link: str | None) -> None:
    """Git on Windows writes a link as a text file with its target, unless told otherwise."""
    shutil.copytree(REPO / "passes", tmp_path / "passes")
    shutil.copytree(REPO / "trp_onnx", tmp_path / "trp_onnx", ignore=shutil.ignore_patterns("passes", "__pycache__"))
    if link is not None:
        (tmp_path / "trp_onnx" / "passes").write_text(link)
    done = run("import trp_onnx.passes; print(trp_onnx.passes.__file__, trp_onnx.passes.CleanUpPass)", path=tmp_path)
    assert done.returncode == 0 and str(tmp_path / "passes") in done.stdout, done.stderr
