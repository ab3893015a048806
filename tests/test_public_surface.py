"""What `import trp_onnx` shows: every command and every type that one takes or gives, and nothing else."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import get_args, get_origin

import onnx_ir as ir
import pytest

import trp_onnx

PUBLIC = {name: getattr(trp_onnx, name) for name in trp_onnx.__all__}
COMMANDS = {
    "bench", "compress", "demo", "doctor", "evaluate", "export", "inspect", "profile", "quantize", "setup_training",
    "verify",
}  # fmt: skip
OTHERS = {"metric", "on_progress", "open_data", "read_rules", "read_table", "save_table"}


def test_exported_members() -> None:
    assert dir(trp_onnx) == sorted(trp_onnx.__all__)
    functions = {name for name, value in PUBLIC.items() if inspect.isfunction(value)}
    assert functions == COMMANDS | OTHERS
    assert all(inspect.isclass(PUBLIC[name]) for name in PUBLIC.keys() - functions - {"__version__"})
    assert all(value.__doc__ for name, value in PUBLIC.items() if name != "__version__")
    with pytest.raises(AttributeError):
        _ = trp_onnx.nothing
    importlib.import_module("trp_onnx.commands.inspect")  # a module of the same topic does not hide the function
    assert callable(trp_onnx.inspect)


def ours(annotation: object, home: object) -> Iterator[type]:
    """Classes of this package among the values of an annotation; public ones are known everywhere."""
    parts = [eval(str(annotation), vars(sys.modules[home.__module__]) | PUBLIC | {"ir": ir})]
    while parts:
        part = parts.pop()
        if isinstance(part, type) and part.__module__.startswith("trp_onnx"):
            yield part
        parts += () if get_origin(part) is Callable else get_args(part)


@pytest.mark.parametrize("command", sorted(COMMANDS | {"read_table", "read_rules"}))
def test_what_a_command_gives_is_public_through_and_through(command: str) -> None:
    open_ = list(ours(inspect.signature(PUBLIC[command]).return_annotation, PUBLIC[command]))
    seen: set[type] = set()
    while open_:
        kind = open_.pop()
        if kind in seen:
            continue
        seen.add(kind)
        assert PUBLIC.get(kind.__name__) is kind
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            home = next(base for base in kind.__mro__ if field.name in inspect.get_annotations(base))
            open_ += ours(field.type, home)


def test_importing_the_package_imports_nothing_else() -> None:
    code = (
        "import sys, trp_onnx; dir(trp_onnx); "
        "print({name.partition('.')[0] for name in sys.modules} & {'numpy', 'onnx', 'onnx_ir', 'click', 'scipy'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
