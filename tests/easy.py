"""`compress` with all wishes in one line, for tests that are about something else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import trp_onnx
from trp_onnx import Device, Goal, NetworkOptions, Report, SearchSpace, Training, TrainingOptions
from trp_onnx.report import check_page


def compress(
    model: Any,
    out: Any = None,
    *,
    config: Any = (),
    train: TrainingOptions | None = None,
    report_dir: Path | None = None,
    save_plan: Path | None = None,
    command: str | None = None,
    **wishes: Any,
) -> Report:
    """Every wish goes into the type that has a field of its name; the report comes back.

    Args:
        model: See `trp_onnx.compress`.
        out: The same; `NAME.lowrank.onnx` beside the model where it is not given.
        config: Rules, or a file with them.
        train: How to train.
        report_dir: Where the report goes.
        save_plan: Where the plan goes.
        command: How to repeat it, for the page.
        wishes: Fields of `Goal`, `SearchSpace`, `Device`, `NetworkOptions` and `Training`; `data` and `test`.
    """
    if report_dir is not None:
        check_page()
    rules = trp_onnx.read_rules(Path(config)) if isinstance(config, (str, Path)) else config

    def taken(kind: Any) -> dict[str, Any]:
        names = {field.name for field in dataclasses.fields(kind)} & wishes.keys()
        return {name: wishes.pop(name) for name in sorted(names)}

    options = {
        "search": SearchSpace(**taken(SearchSpace)),
        "device": Device(**taken(Device)),
        "network": NetworkOptions(**taken(NetworkOptions)),
        "training": None if train is None else Training(train, **taken(Training)),
    }
    result = trp_onnx.compress(model, out, Goal(rules=rules, **taken(Goal)), **options, **wishes)
    if save_plan is not None:
        result.plan.save(save_plan)
    if report_dir is not None:
        result.report.save(report_dir, command)
    return result.report
