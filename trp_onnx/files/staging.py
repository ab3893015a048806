"""What is written appears whole or not at all.

It is built under a hidden name beside its place and moved there by rename; whatever ends the work before that, the
hidden one is removed and nothing has changed. Its name says who is at work:

    .NAME.HOST-PID-START.TOKEN.partial

so that what a killed process leaves behind is removed when the same NAME is written again, and what a living one or
another host on the same disk is writing is not.

A model and the file of its weights are two renames. The weights go first, under a name that the model that stands there
does not use; the rename of the model is what counts; then its old weights go. So a model has its weights whenever the
work is killed, and what a kill left over is replaced by the next.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

from trp_onnx.errors import ModelError, OutputError
from trp_onnx.files.paths import cannot_write, is_ours, reason
from trp_onnx.process.interrupts import held_back
from trp_onnx.process.memory import SHARE, available

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from trp_onnx.job.network import ExternalData

EXTERNAL_FROM = 1536 * 2**20
"""Bytes of weights from which they go into a file of their own; protobuf ends at 2 GiB."""

SPOOLED_FROM = 256 * 2**20
"""Bytes of weights from which new ones are kept on disk, where the input keeps its own in another file."""

_ONE_FILE = 2**31 - 2**24
"""Bytes of weights that one file holds at most, with room for its graph."""

_COPIES = 3
"""How often weights stand in memory while one file is written: as they are, as protobuf, as bytes."""

_LONGEST = 120  # bytes of a hidden name that are NAME's


def hidden_beside(path: Path) -> Path:
    """A hidden name for what becomes `path`; it says which process uses it. What dead ones left is removed."""
    remove_dead(path)
    pid = os.getpid()
    return path.parent / f".{_label(path)}.{_host()}-{pid}-{_state(pid)[1]}.{secrets.token_hex(4)}.partial"


def remove_dead(path: Path) -> None:
    """Remove what processes of this host that are gone left behind of `path`."""
    pattern = re.compile(rf"\.{re.escape(_label(path))}\.{_host()}-(\d+)-(\d+)\.[0-9a-f]{{8}}\.partial")
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(path.parent)):
            found = pattern.fullmatch(entry.name)
            if found and not _lives(int(found[1]), found[2]):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    Path(entry.path).unlink(missing_ok=True)


def _label(path: Path) -> str:
    """The name, or what stands for one that would leave no room."""
    encoded = path.name.encode(errors="surrogateescape")
    return path.name if len(encoded) <= _LONGEST else hashlib.sha256(encoded).hexdigest()[:16]


def _host() -> str:
    """This host, or this container: process ids mean something within it alone."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = ""
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


def _state(pid: int) -> tuple[str, str]:
    """What a process does, as one letter, and when it began, in the kernel's ticks: ids come again, not both."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return words[0], words[19]
    except (OSError, IndexError):
        return "", "0"


def _lives(pid: int, started: str) -> bool:
    if os.name != "posix":  # there is no harmless signal: os.kill would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is another user's
    state, since = _state(pid)
    return state not in ("Z", "X") and since in (started, "0")


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that becomes `path` when the block ends well.

    Raises:
        OutputError: It cannot be written; what was there still is.
    """
    temporary = hidden_beside(path)
    try:
        try:
            with temporary.open("xb") as file:
                yield file
            with held_back():
                temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise cannot_write(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    with written_whole(path) as file:
        file.write(text.encode())


class Staging:
    """A hidden folder beside the target, in which the result is built; a context manager.

        with Staging(out, model) as staging:
            staging.save(model)     # staging.path now holds the model, under its final name
            ...                     # verify it
            staging.publish()       # rename into place

    Attributes:
        path: The model inside the folder.
        data: Its weights, where they are too many for one file.
    """

    def __init__(self, out: Path, model: ir.Model, external_data: ExternalData = "auto") -> None:
        """Choose the folder; entering makes it.

        Args:
            out: Where the result shall be; the guard of `paths` has let it pass, and `files_of(out)`.
            model: The opened input.
            external_data: Whether weights go beside the model, see `NetworkOptions`.
        """
        from trp_onnx.graph.model import has_external_data, weight_bytes

        self.out = out
        self.folder = hidden_beside(out)
        self.path = self.folder / out.name
        self._old = _weights_of(out)
        free = next(path for path in files_of(out)[1:] if path not in self._old)
        self.data = self.folder / free.name
        self._external_data = external_data
        self._spools = has_external_data(model) and weight_bytes(model) > SPOOLED_FROM
        self._spool = self.folder / f"{out.name}.f"

    def keep(self, name: str, array: np.ndarray, dtype: ir.DataType) -> ir.TensorProtocol:
        """A tensor for the new model: in memory, or on disk where the input keeps large weights there.

        Raises:
            OutputError: The disk is full.
        """
        import numpy as np
        import onnx_ir as ir

        array = np.ascontiguousarray(array, dtype=dtype.numpy())
        if not self._spools:
            return ir.tensor(array, name=name)
        try:
            with self._spool.open("ab") as file:
                offset = file.tell()
                file.write(array.tobytes())
        except OSError as error:
            raise cannot_write(self.out, error) from error
        return ir.ExternalTensor(
            self._spool.name, offset, array.nbytes, dtype,
            shape=ir.Shape(array.shape), name=name, base_dir=self.folder,
        )  # fmt: skip

    def save(self, model: ir.Model) -> None:
        """Write the model into the folder, its weights beside it where they are to be there.

        Raises:
            OutputError: One file is asked for and does not hold them, the disk is full, or any other failure to write.
            ModelError: A file that holds its weights is gone.
        """
        import onnx_ir as ir

        from trp_onnx.graph.model import check_weights

        check_weights(model)
        external = self._goes_beside(model)
        if not external:
            ir.external_data.load_to_model(model)
        try:
            ir.save(model, self.path, format="protobuf", external_data=self.data.name if external else None)
            self._spool.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self.out, error) from error

    def _goes_beside(self, model: ir.Model) -> bool:
        """Whether the weights get a file of their own: as asked for, else where one file or memory does not hold them.

        Raises:
            OutputError: One file is asked for, and they are too many.
        """
        from trp_onnx.graph.model import weight_bytes

        size = weight_bytes(model)
        if self._external_data == "auto":
            return size > EXTERNAL_FROM or _COPIES * size > SHARE * available()
        if self._external_data == "no" and size > _ONE_FILE:
            raise OutputError(
                f"'{self.out}' cannot be one file: its weights take {size / 2**30:.1f} GiB, and protobuf ends at 2; "
                "--external-data yes puts them beside it"
            )
        return self._external_data == "yes"

    def publish(self) -> None:
        """Move the result into place; the weights of the one that was there go if that was ours.

        Raises:
            OutputError: A rename failed.
        """
        try:
            with held_back():
                old = self._old if self._old and is_ours(self.out) else []
                if self.data.exists():
                    self.data.replace(self.out.with_name(self.data.name))
                self.path.replace(self.out)
                for path in old:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self.out, error) from error

    def __enter__(self) -> Staging:
        # Its name is known before it is there: whenever an interrupt comes, it is removed.
        try:
            self.folder.mkdir(mode=0o700)
        except OSError as error:
            raise OutputError(f"cannot write '{self.out}': {reason(error)}") from error
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def files_of(out: Path) -> tuple[Path, Path, Path]:
    """The files that a result may consist of: the model, and its weights where they are many, under either name.

    Raises:
        OutputError: The path names no file.
    """
    if not out.name:
        raise OutputError(f"cannot write '{out}': it is a folder")
    return out, out.with_name(out.name + ".data"), out.with_name(out.name + ".1.data")


def _weights_of(out: Path) -> list[Path]:
    """Those of `files_of` in which the model that stands there keeps its weights."""
    from trp_onnx.graph.model import external_files

    there = [path for path in files_of(out)[1:] if path.is_file()]
    try:
        used = external_files(out) if there and out.is_file() else []
    except ModelError:  # it is no model, or has lost them
        return []
    return [path for path in there if any(path.samefile(file) for file in used)]
