"""Runs one try in a process of its own and says whether the command kept its promises.

Everything is imported before, and the process is forked: a try costs what its command costs. No session of onnxruntime
may be made before the fork, its threads would be missing behind it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import signal
import stat
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from tests.fuzz import corpus
from tests.fuzz.tries import Material, Try, make

CPU_SECONDS = 40
WALL_SECONDS = 150
ADDRESS_SPACE = 6 * 2**30
FOREIGN = re.compile(
    r"^\[[EWF]:|onnxruntime::|^WARNING|^E0|Warning: |libprotobuf|^\[ONNX|terminate called|Simplif.*fail", re.M
)
PYTHON = re.compile(r"Error calling|' object |NoneType|<class|<built-in|\b0x[0-9a-f]{6}|\w+Error\(|numpy\._|traceback")
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass
class Verdict:
    """What came of a try; `kind` is "fine", or the promise that was broken."""

    number: str
    kind: str
    detail: str
    code: int
    seconds: float
    mutation: str
    command: str
    said: str


def judge(number: str, folder: Path, material: Material, *, keep: bool = False) -> Verdict:
    """Make a try below an empty folder, run it, look at everything, and clear up."""
    files, control = folder / "files", folder / "control"
    for made in (files, control / "tmp"):
        made.mkdir(parents=True)
    pid = _forked(lambda: _run(number, files, control, material), control)
    began = time.monotonic()
    code, seconds = _waited(pid)
    tried = _read(control / "try.json")
    said, errors = ((control / name).read_text("utf-8", "replace") for name in ("stdout", "stderr"))
    if tried is None:
        shutil.rmtree(folder, ignore_errors=True)
        return Verdict(number, "not made", errors.strip().splitlines()[-1][:300], code, seconds, "", "", "")
    made_try, before = Try(**tried["try"]), tried["before"]
    kind, detail = _broken(code, seconds, time.monotonic() - began, said, errors, made_try)
    if kind == "fine":
        kind, detail = _files(made_try, before, _state(files), code)
    left = [path.name for path in (control / "tmp").iterdir() if path.name != ".ses"]  # that one is onnxruntime's own
    if kind == "fine" and left:
        kind, detail = "files left", f"temporary {left}"
    if kind == "fine" and code == 0 and made_try.written is not None:
        pid = _forked(lambda: _compare(files, made_try, control), control)
        ended, _ = _waited(pid)
        detail = (control / "compared").read_text() if (control / "compared").exists() else ""
        if detail or ended:
            kind, detail = "written model", detail or f"ended with {ended}"
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    last = [line for line in errors.splitlines() if line.strip()][-1:]
    command, mutation = " ".join(made_try.arguments)[:300], made_try.mutation[:500]
    return Verdict(number, kind, detail[:500], code, round(seconds, 2), mutation, command, "".join(last)[:300])


# The processes.


def _forked(work: Callable[[], int], control: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        os.setsid()
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _run(number: str, files: Path, control: Path, material: Material) -> int:
    """In the child: the command as the shell would run it, what it prints in files."""
    os.environ |= {"TRP_ONNX_CACHE": str(control / "cache"), "TMPDIR": str(control / "tmp"), "COLUMNS": "140"}
    for number_of, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(control / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number_of)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(files)
    made = make(number, files, material)
    (control / "try.json").write_text(json.dumps({"try": asdict(made), "before": _state(files)}))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from trp_onnx.cli.main import main

    sys.argv = ["trp-onnx", *made.arguments]
    try:
        main(prog_name="trp-onnx")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _waited(pid: int) -> tuple[int, float]:
    """Exit code, negative for a signal, and seconds of processor time; what outlives the try is ended."""
    end = time.monotonic() + WALL_SECONDS
    pause = 0.001
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > end:
            os.killpg(pid, signal.SIGKILL)
        time.sleep(pause)
        pause = min(0.02, pause * 1.2)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


# The promises.


def _broken(code: int, seconds: float, wall: float, said: str, errors: str, made: Try) -> tuple[str, str]:
    if code in (-signal.SIGXCPU, -signal.SIGKILL) and (seconds > CPU_SECONDS - 2 or wall > WALL_SECONDS - 2):
        return "hang", f"{seconds:.0f} s of the processor, {wall:.0f} s"
    if code < 0:
        return "signal", signal.Signals(-code).name
    if "Traceback" in errors:
        return "traceback", _where(errors)
    if code not in (0, 1, 2, 3):
        return "exit code", str(code)
    sentences = [line for line in errors.splitlines() if re.match(r"trp-onnx: error: |Error: ", line)]
    if len(sentences) != (0 if code == 0 else 1):
        return "sentences", f"{len(sentences)} with exit code {code}"
    if code and (sentences[0].rstrip().endswith(":") or len(sentences[0]) > 4200):
        return "sentences", f"an odd one: {sentences[0][:200]}"
    if code and (found := PYTHON.search(sentences[0])):
        return "sentences", f"{found.group()!r} is for programmers: {sentences[0][:200]}"
    if found := CONTROL.search(said + errors):
        return "escapes", repr(found.group())
    if found := FOREIGN.search(errors):
        return "foreign lines", errors[found.start() :].splitlines()[0]
    if code == 0 and made.arguments[-2:] == ["--json", "-"]:
        return _json(said)
    return "fine", ""


def _where(errors: str) -> str:
    """The error and the innermost line of ours."""
    places = re.findall(r'File "(?:(?!site-packages)[^"])*/((?:trp_onnx|passes)/[^"]*)", line (\d+), in (\S+)', errors)
    last = [line for line in errors.splitlines() if line and not line.startswith((" ", "\t"))][-1:]
    place = "{}:{} {}".format(*places[-1]) if places else "?"
    return f"{place}: {''.join(last)}"


def _json(said: str) -> tuple[str, str]:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    try:
        json.loads(said, parse_constant=refuse)
    except ValueError as error:
        return "json", str(error)
    return "fine", ""


def _state(folder: Path) -> dict[str, str]:
    """Every file below a folder, and what it holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            content = f"link to {path.readlink()}"
        elif stat.S_ISREG(mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            content = str(stat.S_IFMT(mode))
        found[str(path.relative_to(folder))] = content
    return found


def _files(made: Try, before: dict[str, str], after: dict[str, str], code: int) -> tuple[str, str]:
    kept = [name for name in before if ".trp-run" not in name]  # a run is ours, and goes on
    changed = [name for name in kept if after.get(name) != before[name]]
    if changed:
        return "inputs changed", str(changed)
    folders = [name.rstrip("/") for name in made.outputs if name.endswith("/")]
    if code:
        folders = [name for name in folders if name.endswith(".trp-run")]  # kept for --resume
    new = [name for name in after if name not in before and name.partition("/")[0] not in folders]
    if code == 0:
        new = [name for name in new if name not in made.outputs]
    return ("files left", str(new)) if new else ("fine", "")


def _compare(files: Path, made: Try, control: Path) -> int:
    """In the child: where the original runs and is finite, the written model does as well."""
    for number in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
    os.chdir(files)
    try:
        feeds = corpus.feeds(onnx.load(made.model, load_external_data=False), 2)
        expected = _outputs(made.model, feeds)
    except Exception:
        return 0  # not on these inputs
    if not all(map(_finite, expected)):
        return 0
    try:
        actual = _outputs(str(made.written), feeds)
    except Exception as error:
        (control / "compared").write_text(f"does not run: {str(error)[:300]}")
        return 0
    if len(actual) != len(expected):
        (control / "compared").write_text(f"has {len(actual)} outputs, not {len(expected)}")
    elif not all(map(_finite, actual)):
        (control / "compared").write_text("is not finite")
    return 0


def _outputs(path: str, feeds: dict[str, np.ndarray]) -> list[Any]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()}))


def _finite(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_finite, value))
    array = np.asarray(value)
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
