"""Other runtimes: the same answers there, turns taken there, and what happens when they are missing, die or hang."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import platformdirs
import pytest
from click.testing import CliRunner

import trp_onnx
from tests.easy import compress
from tests.graphs import conv_net, rng
from trp_onnx.cli.main import main
from trp_onnx.errors import ModelError, RunnerError, UsageError
from trp_onnx.runners import open_runner

HERE = f"python:{sys.executable}"
FEEDS = {"x": rng().standard_normal((2, 3, 12, 12)).astype(np.float32)}


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return conv_net(tmp_path_factory.mktemp("net") / "net.onnx", channels=32)


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No temporary file and no process outlives a test."""
    folder = Path(tempfile.mkdtemp())  # short: a browser makes sockets below it
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    left = [path.name for path in folder.iterdir() if path.name != ".ses"]  # that one is onnxruntime's own
    shutil.rmtree(folder)
    assert left == [] and children() == []


def children() -> list[str]:
    """The command lines of what this process has started and that still runs, where the system has a /proc."""
    end = time.monotonic() + 30
    while found := list(filter(None, map(command_line, Path("/proc/self/task").glob("*/children")))):
        if time.monotonic() > end:
            break
        time.sleep(0.1)
    return found


def command_line(numbers: Path) -> str:
    """Of the processes whose numbers a file holds; one that has ended has none."""
    try:
        texts = [Path(f"/proc/{number}/cmdline").read_text() for number in numbers.read_text().split()]
    except OSError:  # ended just now
        return ""
    return " ".join(texts).replace("\0", " ").strip()


@pytest.fixture
def npm_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own npm packages, or those that npm installs now."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not on the path")
    mine = Path(platformdirs.user_cache_dir("trp-onnx"))
    monkeypatch.setenv("TRP_ONNX_CACHE", str(mine))


def same_as_here(net: Path, runtime: str, tolerance: float = 1e-5) -> None:
    with open_runner() as here, open_runner(runtime) as there:
        here.prepare([net], FEEDS)
        there.prepare([net, net], FEEDS)
        (expected,), (first, second) = here.outputs(), there.outputs()
        for name, array in expected.items():
            np.testing.assert_allclose(first[name], array, rtol=tolerance, atol=tolerance)
            np.testing.assert_array_equal(first[name], second[name])
            assert first[name].dtype == array.dtype
        samples = there.run(3, [2, 2])
        assert np.shape(samples.seconds) == (3, 2) and np.min(samples.seconds) > 0 and len(samples.disturbed) == 3
        profile = there.profile([1], 4)
        assert profile.plain.shape == (4, 1) and profile.seconds[0].shape == (4, len(profile.nodes[0]))
        assert any("Conv" in node.op for node in profile.nodes[0])
        assert {node.provider for node in profile.nodes[0]} == {"CPUExecutionProvider"}


def test_another_interpreter(net: Path) -> None:
    same_as_here(net, HERE)


@pytest.mark.network
@pytest.mark.runtimes
def test_node(net: Path, npm_packages: None) -> None:
    same_as_here(net, "node")


@pytest.mark.network
@pytest.mark.runtimes
def test_a_browser(net: Path, npm_packages: None) -> None:
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        pytest.skip("there is no Chromium on the path")
    same_as_here(net, "web")
    result = trp_onnx.bench([net, net], rounds=8, threads=2, runtime="web", inputs=_inputs(net))
    assert "onnxruntime-web" in result.runtime and result.threads == 2


def _inputs(net: Path) -> Path:
    path = net.with_name("x.npz")
    np.savez(path, **FEEDS)
    return path


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An ssh server on this machine, with a key of its own."""
    sshd = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if sshd is None or shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        pytest.skip("there is no sshd")
    folder = tmp_path / "ssh"
    folder.mkdir(mode=0o700)
    for name in ("host", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "key.pub", folder / "authorized")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nPidFile none\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen([sshd, "-D", "-e", "-f", str(folder / "config")], stderr=subprocess.DEVNULL)
    monkeypatch.setenv(
        "TRP_ONNX_SSH",
        f"ssh -p {port} -i {folder}/key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
    )
    for _ in range(50):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield "127.0.0.1"
    server.terminate()
    server.wait()


@pytest.mark.runtimes
def test_a_board_over_ssh(net: Path, board: str, tmp_path: Path) -> None:
    same_as_here(net, f"ssh:{board}:{sys.executable}")
    with pytest.raises(RunnerError, match=r"died.*not found|died.*No such file"):
        trp_onnx.bench([net], rounds=2, runtime=f"ssh:{board}:/nowhere/python")
    shutil.rmtree(tmp_path / "ssh")
    with pytest.raises(RunnerError, match="died"):
        trp_onnx.bench([net], rounds=2, runtime=f"ssh:{board}:{sys.executable}")


def interpreter(name: str) -> str:
    """Another runtime that benchmarks/other_runtimes.sh made."""
    folder = os.environ.get("TRP_ONNX_RUNTIMES")
    path = Path(folder or "/nowhere") / name / ("python" if name == "arm64" else "bin/python")
    if not path.is_file():
        pytest.skip(f"{name} is absent: benchmarks/other_runtimes.sh DIR makes it, TRP_ONNX_RUNTIMES=DIR names it")
    return f"python:{path}"


@pytest.mark.runtimes
def test_another_release(net: Path, tmp_path: Path) -> None:
    """Files of this release run in 1.19.2, and those of 1.19.2 here."""
    there = interpreter("1.19.2")
    same_as_here(net, there)
    trp_onnx.export(net, tmp_path / "out")
    same_as_here(tmp_path / "out" / "net.ort", there)
    code = (
        "import sys, pathlib; from onnxruntime.tools.convert_onnx_models_to_ort import *; "
        "convert_onnx_models_to_ort(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), [OptimizationStyle.Fixed])"
    )
    subprocess.run(
        [there.partition(":")[2], "-c", code, str(net), str(tmp_path / "theirs")], check=True, capture_output=True
    )
    same_as_here(tmp_path / "theirs" / "net.ort", there)


@pytest.mark.runtimes
def test_arm64_gives_the_same_numbers(net: Path, tmp_path: Path) -> None:
    there = interpreter("arm64")
    trp_onnx.export(net, tmp_path / "out", target="arm")
    for path in (net, tmp_path / "out" / "net.ort"):
        with open_runner() as here, open_runner(there) as arm:
            assert "aarch64" in arm.describe().machine
            here.prepare([path], FEEDS)
            arm.prepare([path], FEEDS)
            for name, array in here.outputs()[0].items():
                np.testing.assert_allclose(arm.outputs()[0][name], array, rtol=1e-5, atol=1e-6)


@pytest.mark.runtimes
def test_openvino(net: Path) -> None:
    runtime = interpreter("openvino")
    result = trp_onnx.bench([net], rounds=2, runtime=runtime, provider="openvino", inputs=_inputs(net))
    assert set(result.contenders[0].providers) == {"OpenVINOExecutionProvider"}
    with open_runner() as here, open_runner(runtime) as there:
        here.prepare([net], FEEDS)
        there.prepare([net], FEEDS, provider="openvino")
        for name, array in here.outputs()[0].items():
            np.testing.assert_allclose(there.outputs()[0][name], array, rtol=1e-2, atol=1e-2)


@pytest.mark.runtimes
def test_the_simulator_of_qnn(net: Path, tmp_path: Path) -> None:
    runtime = interpreter("qnn")
    with pytest.raises(ModelError, match="qnn took none of the nodes"):
        trp_onnx.bench([net], rounds=1, runtime=runtime, provider="qnn", inputs=_inputs(net))
    proto = onnx.load(net)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(proto, tmp_path / "fixed.onnx")
    result = trp_onnx.bench([tmp_path / "fixed.onnx"], rounds=1, runtime=runtime, provider="qnn", inputs=_inputs(net))
    assert set(result.contenders[0].providers) == {"QNNExecutionProvider"}
    assert any("simulator" in note for note in result.notes)
    with open_runner() as here, open_runner(runtime) as there:
        here.prepare([net], FEEDS)
        there.prepare([tmp_path / "fixed.onnx"], FEEDS, provider="qnn")
        for name, array in here.outputs()[0].items():
            np.testing.assert_allclose(there.outputs()[0][name], array, rtol=2e-2, atol=2e-2)  # it computes in float16


def test_bench_and_a_latency_table_elsewhere(net: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.onnx"
    compress(net, small, macs=0.3, align=1, scheme="spatial")
    result = trp_onnx.bench([net, small], rounds=20, runtime=HERE)
    assert "Python" in result.runtime and len(result.contenders) == 2
    assert {"conv1", "conv2"} <= set(result.contenders[0].layers)
    table = trp_onnx.profile(net, runtime=HERE)
    assert set(table.shares) == {"conv1", "conv2", "fc"} and any(map(any, (by.values() for by in table.parts.values())))


def test_runtimes_that_are_not_there(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(runtime: str, words: str) -> None:
        with pytest.raises(RunnerError, match=words) as refusal:
            trp_onnx.bench([net], rounds=2, runtime=runtime)
        assert refusal.value.exit_code == 1 and "\n" not in str(refusal.value)

    refused("python:/no/such/python", "no interpreter '/no/such/python'")
    bare = script(tmp_path / "bare", f'exec {sys.executable} -S -I "$@"')
    refused(f"python:{bare}", "died.*numpy")
    (tmp_path / "broken" / "onnxruntime").mkdir(parents=True)
    (tmp_path / "broken" / "onnxruntime" / "__init__.py").write_text("raise ImportError('gone')")
    without = script(tmp_path / "without", f'PYTHONPATH={tmp_path / "broken"} exec {sys.executable} "$@"')
    refused(f"python:{without}", "has no onnxruntime")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("TRP_ONNX_CACHE", str(tmp_path / "cache"))
    refused("node", "needs Node.js")
    for word in ("phone", "python:", "ssh:", ""):
        with pytest.raises(UsageError, match="unknown runtime"):
            trp_onnx.bench([net], rounds=2, runtime=word)


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


class Holders:
    """The processes that hold a pipe open, whatever their names and numbers: they write to it, and it ends with them.

    (What `ps` shows depends on the machine: its width, and whose process numbers it sees.)
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "pipe"
        os.mkfifo(self.path)
        self.reading = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)

    def script(self, path: Path, text: str) -> Path:
        """A script that says its process number here, then does `text`; what it starts holds the pipe as well."""
        return script(path, f"exec 9> {self.path}; echo $$ >&9; {text}")

    def first(self) -> int:
        """The process number of the script that ran first."""
        return int(os.read(self.reading, 100).split()[0])

    def gone(self, within: float = 30) -> bool:
        """Whether all of them end in that many seconds."""
        end = time.monotonic() + within
        while time.monotonic() < end:
            try:
                if not os.read(self.reading, 100):
                    return True
            except BlockingIOError:
                time.sleep(0.1)
        return False


@pytest.fixture
def holders(tmp_path: Path) -> Iterator[Holders]:
    found = Holders(tmp_path)
    yield found
    os.close(found.reading)


def test_a_worker_that_hangs(net: Path, tmp_path: Path, holders: Holders) -> None:
    stuck = holders.script(tmp_path / "stuck", "sleep 1234.5 & sleep 1234.5")
    result = CliRunner().invoke(main, ["bench", str(net), "--runtime", f"python:{stuck}", "--timeout", "0.5"])
    assert result.exit_code == 1 and "no sign of life for 0.5 s" in result.stderr
    assert holders.first() and holders.gone()  # long before the worker's own end


def test_a_worker_that_hangs_while_it_is_sent_a_model(net: Path, tmp_path: Path) -> None:
    """A pipe holds 64 kB: what is larger waits for a reader."""
    deaf = tmp_path / "deaf.py"
    answer = {"ok": {"machine": "m", "runtime": "1", "host": "h", "providers": ["CPUExecutionProvider"],
                     "profiles": True}}  # fmt: skip
    deaf.write_text(
        f"import sys, time\nsys.stdin.readline()\nprint({json.dumps(answer)!r}, flush=True)\ntime.sleep(999)"
    )
    wrapper = script(tmp_path / "wrapper", f"exec {sys.executable} {deaf}")
    with open_runner(f"python:{wrapper}", timeout=2) as runner, pytest.raises(RunnerError, match="no sign of life"):
        runner.prepare([bytes(4_000_000)], FEEDS)


def test_start_up_scripts_that_talk(net: Path, tmp_path: Path) -> None:
    chatty = script(
        tmp_path / "chatty", f"echo 42; echo '[1]'; echo hello; printf '\\377\\n'; exec {sys.executable} \"$@\""
    )
    same_as_here(net, f"python:{chatty}")


def test_a_worker_whose_child_keeps_the_pipe(net: Path, tmp_path: Path) -> None:
    number = tmp_path / "number"
    leaving = script(tmp_path / "leaving", f'setsid sleep 999 & echo $! > {number}; exec {sys.executable} "$@"')
    with open_runner(f"python:{leaving}") as runner:
        runner.describe()
    os.kill(int(number.read_text()), signal.SIGKILL)  # nobody waited for it


def test_answers_of_something_else(net: Path, tmp_path: Path) -> None:
    for answer in ('{"ok": 1}', '{"ok": {"machine": 1}}', '{"refused": "x"}'):
        odd = script(tmp_path / "odd", f"read line; echo '{answer}'; sleep 99")
        with open_runner(f"python:{odd}", timeout=5) as runner, pytest.raises((RunnerError, ModelError)):
            runner.describe()
    with pytest.raises(UsageError, match="--timeout"):
        open_runner(HERE, timeout=float("inf"))


def test_inputs_that_are_strings(tmp_path: Path) -> None:
    nodes = [onnx.helper.make_node("Identity", ["x"], ["y"])]
    shape = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.STRING, [3])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.STRING, [3])
    graph = onnx.helper.make_graph(nodes, "g", [shape], [out])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8),
              tmp_path / "s.onnx")  # fmt: skip
    assert trp_onnx.bench([tmp_path / "s.onnx"], rounds=2).rounds == 2


def test_a_worker_that_is_killed(net: Path, tmp_path: Path, holders: Holders) -> None:
    here = holders.script(tmp_path / "python", f'exec {sys.executable} "$@"')
    with open_runner(f"python:{here}") as runner:
        runner.prepare([net], FEEDS)
        threading.Timer(0.3, os.kill, (holders.first(), signal.SIGKILL)).start()
        with pytest.raises(RunnerError, match=r"died \(signal 9\)"):
            runner.run(10**6, [10])


def test_a_host_that_is_killed_takes_its_worker_along(net: Path, tmp_path: Path, holders: Holders) -> None:
    here = holders.script(tmp_path / "python", f'exec {sys.executable} "$@"')
    code = (
        "import sys, pathlib, numpy as np; from trp_onnx.runners import open_runner\n"
        f"runner = open_runner('python:{here}'); runner.describe(); print('ready', flush=True); sys.stdin.read()"
    )
    host = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert host.stdout is not None and host.stdout.readline() == "ready\n"
    assert holders.first() and not holders.gone(within=0.3)
    host.kill()
    host.wait()
    host.stdout.close()
    if host.stdin is not None:
        host.stdin.close()
    assert holders.gone()


@pytest.mark.network
@pytest.mark.runtimes
def test_pages_that_do_not_load(net: Path, tmp_path: Path, npm_packages: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(browser: Path, words: str) -> None:
        monkeypatch.setenv("TRP_ONNX_BROWSER", str(browser))
        with pytest.raises(RunnerError, match=words):
            trp_onnx.bench([net], rounds=2, runtime="web", timeout=1)

    refused(script(tmp_path / "blind", "sleep 1000"), "did not load its page for 1 s")
    refused(script(tmp_path / "broken", "echo no display >&2; exit 3"), r"exit code 3.*no display")
    refused(tmp_path / "none", "no browser")


def test_models_that_do_not_run_there(net: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with open_runner(HERE) as runner:
        with pytest.raises(ModelError, match="cannot load"):
            runner.prepare([tmp_path / "broken.onnx"], FEEDS)
        with pytest.raises(ModelError, match="no value for input 'x'"):
            runner.prepare([net], {})
        with pytest.raises(ModelError, match="does not exist"):
            runner.prepare([tmp_path / "none.onnx"], FEEDS)
        with pytest.raises(UsageError, match="coreml is not in this onnxruntime"):
            runner.prepare([net], FEEDS, provider="coreml")
        runner.prepare([net], FEEDS)  # it is none the worse for that
        assert len(runner.outputs()) == 1


def test_the_runtime_is_named(net: Path) -> None:
    result = CliRunner().invoke(main, ["bench", str(net), "--rounds", "2", "--runtime", HERE, "--json", "-"])
    document = json.loads(result.stdout)
    assert "Python" in document["runtime"] and document["contenders"][0]["ratio"]["median"] == 1.0
