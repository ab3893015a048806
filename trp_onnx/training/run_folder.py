"""The run directory as a thing that we make and remove: a marker file says that it is ours.

What a user put there stays: only files whose names are ours are removed, and the folder if nothing else is in it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from trp_onnx.errors import OutputError, UsageError
from trp_onnx.files.paths import reason
from trp_onnx.files.staging import remove_dead, write_text
from trp_onnx.training.checkpoint import PARTIAL
from trp_onnx.training.job import MARKER, RUN_FILES


class RunFolder:
    """A folder with a marker in it."""

    def __init__(self, path: Path) -> None:
        """Name it; nothing is touched."""
        self.path = path
        self._marker = path / MARKER

    def check(self) -> None:
        """Refuse a folder that is somebody else's.

        Raises:
            UsageError: It is there, holds something, and was not made by us.
        """
        if self._marker.is_file() or not self.path.is_dir():
            return
        with contextlib.suppress(OSError):  # whoever writes there says so
            for entry in self.path.iterdir():
                if entry.name.startswith(f".{MARKER}.") and entry.name.endswith(PARTIAL):
                    continue  # a run that was killed before it had its marker
                raise UsageError(
                    f"the folder '{self.path}' holds '{entry.name}' and was not made for a training run: name another "
                    "by --run, or an empty one"
                )

    def make(self) -> None:
        """Make it, marker first; what killed processes left half in it goes.

        Raises:
            UsageError: See `check`.
            OutputError: It cannot be made.
        """
        self.check()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the run folder '{self.path}': {reason(error)}") from error
        if not self._marker.is_file():
            write_text(self._marker, "a training run of trp-onnx, format 1\n")
        for name in RUN_FILES:
            remove_dead(self.path / name)

    def foreign(self) -> list[str]:
        """Names, relative to the folder, of what somebody else put there."""
        ours = {*RUN_FILES, *(str(Path(name).parent) for name in RUN_FILES)}
        found = sorted(str(entry.relative_to(self.path)) for entry in self.path.rglob("*"))
        return [name for name in found if name not in ours and not name.endswith(PARTIAL)]

    def remove(self) -> None:
        """Remove our files, and the folder if nothing else is in it."""
        if not self._marker.is_file():
            return
        for name in RUN_FILES:  # the marker is the last: until then what is left is known to be ours
            path = self.path / name
            remove_dead(path)
            for file in (path, path.with_name(path.name + PARTIAL)):
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)
        inside = {(self.path / name).parent for name in RUN_FILES} - {self.path}
        for folder in (*inside, self.path):
            with contextlib.suppress(OSError):  # something else is in it
                folder.rmdir()
