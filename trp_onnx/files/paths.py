"""What a command may write: one guard for all of them, which stands before the work.

Nothing that is written takes the place of anything that is read: not under another name, through a link or as the
same inode, not the file that holds a model's weights, not an image of a folder of data. No two results go to one
place. Only regular files are replaced, and links to them: no device, pipe or socket.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from trp_onnx.errors import OutputError, UsageError

MADE_BY = "trp_onnx"
"""Key of the metadata by which a file that compress wrote is known; its value is our version."""

REPORT_FILES = ("report.html", "report.json", "plan.toml")
"""What `--report` puts into its folder."""

_SAMPLES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp", ".npz", ".npy", ".bin", "")
"""Suffixes of what is read from a folder of data; CIFAR-10's own files have none."""

_NO_MODELS = (".npz", ".npy", ".toml", ".json", ".whl")

Folder = tuple[object, Sequence[str]]
"""A folder that is written to, and the names of what goes there."""


def guard(*, writes: Iterable[object] = (), folders: Iterable[Folder] = (), reads: Iterable[object] = ()) -> None:
    """Refuse paths that cannot be written to, or at which something would be lost.

    What is no path (None, a data set in memory, a list of rules) is passed over. Files that are read and do not exist
    are not spoken of: whoever opens them says so.

    Args:
        writes: Files that will be written.
        folders: Folders that are made where they do not exist, and what goes there.
        reads: Files and folders of all kinds that are read, models with what holds their weights, and
            "pkg.module:function" for the module's own file.

    Raises:
        UsageError: A result would replace something that is read, or a plan that is no report's; or two results go to
            one place.
        OutputError: A place cannot be written to, or what stands there is no regular file.
    """
    alone = _paths(writes)
    inside = [(path, names) for entry, names in folders for path in _paths([entry])]
    targets = [*alone, *(folder / name for folder, names in inside for name in names)]
    try:
        for path in alone:
            _check_file(path)
        for folder, names in inside:
            _check_folder(folder)
            for name in names:
                _check_kind(folder / name)
            _check_report(folder, names)
        _check_apart(targets)
        _check_inputs(targets, [_module_of(path) for path in _paths(reads)])
    except (OSError, ValueError, RuntimeError) as error:  # a name that is too long, or holds NUL; a circle of links
        first = next(iter(targets), Path())
        raise OutputError(f"cannot write '{getattr(error, 'filename', None) or first}': {reason(error)}") from error


def reason(error: Exception) -> str:
    """What an error of the system says to a user."""
    code = getattr(error, "errno", None)
    full = code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "no space is left for it" if full else (getattr(error, "strerror", None) or str(error))


def cannot_write(path: Path, error: OSError) -> OutputError:
    """An error of the system as one of ours."""
    return OutputError(f"cannot write '{path}': {reason(error)}; nothing was left behind")


def default_output(model: Path) -> Path:
    """Where the compressed model goes when nobody says: MODEL.lowrank.onnx beside MODEL."""
    return model.with_name(f"{model.name.removesuffix('.onnx')}.lowrank.onnx")


def free_output(model: Path) -> Path:
    """The same, if it is free, or holds a file that trp-onnx wrote.

    Raises:
        UsageError: There is another file.
    """
    out = default_output(model)
    if out.exists() and not is_ours(out):
        raise UsageError(f"'{out}' exists, and trp-onnx did not write it: name another file by -o")
    return out


def is_ours(path: Path) -> bool:
    """Whether a file is a model that `compress` wrote, by its metadata."""
    import onnx

    if not path.is_file():
        return False
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # whatever it is, it is not ours
        return False
    return any(entry.key == MADE_BY for entry in model.metadata_props)


def _paths(entries: Iterable[object]) -> list[Path]:
    """Those that name a place."""
    return [Path(entry) for entry in entries if isinstance(entry, (str, os.PathLike))]


def _module_of(path: Path) -> Path:
    """Of "pkg.module:function" the module's file; of anything else itself."""
    module, separator, function = str(path).partition(":")
    named = separator and function.isidentifier() and not path.exists()
    return Path(*module.split(".")).with_suffix(".py") if named else path


def _check_file(path: Path) -> None:
    """That a file can be written there, or replaced."""
    if not path.name or path.is_dir():
        raise OutputError(f"cannot write '{path}': it is a folder")
    _check_kind(path)
    if not path.parent.is_dir():
        raise OutputError(f"cannot write '{path}': the folder '{path.parent}' does not exist")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"cannot write '{path}': Permission denied")


def _check_report(folder: Path, names: Sequence[str]) -> None:
    """That a plan there is a report's: one that stands alone is what somebody plans by."""
    plan, document = folder / "plan.toml", folder / "report.json"
    if plan.name in names and document.name in names and plan.exists() and not document.exists():
        raise UsageError(f"'{plan}' is no part of a report and would be replaced: give the report another folder")


def _check_kind(path: Path) -> None:
    """That what stands there, if anything does, is a file that may be replaced."""
    if _is_stream(path):
        raise OutputError(f"cannot write '{path}': it is a stream; --json - writes to stdout")
    if path.is_symlink() and not path.exists():
        raise OutputError(f"cannot write '{path}': it is a link to nothing")
    if path.is_dir():
        raise OutputError(f"cannot write '{path}': it is a folder")
    if path.exists() and not path.is_file():
        raise OutputError(f"cannot write '{path}': it is no regular file")


def _is_stream(path: Path) -> bool:
    """Whether a path is another name of an open file (/dev/stdout): a rename would replace the name."""
    for _ in range(40):
        if path.parent.resolve().is_relative_to("/proc"):
            return True
        if not path.is_symlink():
            break
        path = path.parent / path.readlink()
    return False


def _check_folder(path: Path) -> None:
    """That a folder is there or can be made, and can be written to."""
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not there.is_dir():
        raise OutputError(f"cannot make the folder '{path}': '{there}' is a file")
    if not os.access(there, os.W_OK):
        raise OutputError(f"cannot write to '{path}': Permission denied")


def _check_apart(targets: Sequence[Path]) -> None:
    """That no two results go to one place, and none needs a folder where another puts a file."""
    seen: dict[str, Path] = {}
    for target in targets:
        place = _place(target)
        if place in seen or any(_same(target, other) for other in seen.values()):
            raise UsageError(f"two outputs go to '{target}': choose another name for one")
        seen[place] = target
    for target in targets:
        for parent in Path(_place(target)).parents:
            if str(parent) in seen:
                raise UsageError(f"'{seen[str(parent)]}' is to be a file and a folder: choose another name for one")


def _check_inputs(targets: Sequence[Path], read: Sequence[Path]) -> None:
    """That nothing that is read is replaced."""
    places = {_place(path) for path in read}
    there = [target for target in targets if target.exists()]
    for target in targets:
        if _place(target) in places or (target in there and any(_same(target, path) for path in read)):
            raise UsageError(f"the output '{target}' is an input: choose another name, inputs are never modified")
    for target in there:
        for path in read:
            if path.is_dir() and _is_sample(target, path):
                raise UsageError(
                    f"the output '{target}' is in the folder of data '{path}' and would replace a file of it: choose "
                    "another name, inputs are never modified"
                )
            if path.is_file() and any(_same(target, weights) for weights in _weights_of(path)):
                raise UsageError(
                    f"the output '{target}' belongs to the input '{path}', whose weights it holds: choose another "
                    "name, inputs are never modified"
                )


def _is_sample(target: Path, folder: Path) -> bool:
    inside = target.parent.resolve().is_relative_to(folder.resolve())
    return inside and target.suffix.lower() in _SAMPLES


def _weights_of(path: Path) -> list[Path]:
    """The files that hold the weights of what may be a model."""
    from trp_onnx.errors import ModelError
    from trp_onnx.graph.model import external_files

    if path.suffix.lower() not in _NO_MODELS:
        with contextlib.suppress(ModelError):
            return external_files(path)
    return []


def _place(path: Path) -> str:
    """A path as one of its own kind: absolute, links of its folder followed; the last name may not exist yet."""
    return os.path.normcase(path.parent.resolve() / path.name)


def _same(a: Path, b: Path) -> bool:
    """Whether two names are one file, by links of both kinds or in a file system that ignores case."""
    with contextlib.suppress(OSError):
        return a.samefile(b)
    return False
