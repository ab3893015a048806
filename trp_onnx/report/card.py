"""A model card: what Hugging Face and people read beside a model, made from its record without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trp_onnx.printable import printable
from trp_onnx.report.record import Record
from trp_onnx.rows import si


def model_card(record: Record, path: Path) -> str:
    """Markdown with a YAML head; the head's `model-index` holds the scores.

    Args:
        record: What the model says of itself.
        path: The model.
    """
    head: dict[str, Any] = {"library_name": "onnx", "tags": ["onnx", "onnxruntime", "low-rank", "compressed"]}
    score = record.score
    if score is not None:
        metric = {"type": "accuracy" if score.name.startswith("top-1") else score.name, "value": round(score.after, 4)}
        head["model-index"] = [
            {
                "name": path.stem,
                "results": [
                    {
                        "task": {"type": "other"},
                        "dataset": {"name": score.on, "type": "other"},
                        "metrics": [metric | {"name": f"{score.name}{f', {score.unit}' * bool(score.unit)}"}],
                    }
                ],
            }
        ]
    rows = [("MACs", *(si(n) for n in record.macs)), ("parameters", *(si(n) for n in record.parameters))]
    if score is not None:
        before = "" if score.before is None else f"{score.before:.2f} {score.unit}"
        rows.append((f"{score.name} on {score.on}", before, f"{score.after:.2f} {score.unit}"))
    if record.speed is not None:
        speed = record.speed
        rows.append(("speed", "1.00x", f"{speed.median:.2f}x ({speed.low:.2f}-{speed.high:.2f})"))
    table = "\n".join(f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows)
    where = "" if record.speed is None else f"Timed on {_cell(record.speed.target)}. "
    made = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    return f"""---
{"".join(f"{key}: {json.dumps(value)}" + chr(10) for key, value in head.items())}---

# {_cell(path.stem)}

`{_cell(record.source)}` compressed by low rank with trp-onnx, {record.date[:10]}.
Inputs and outputs are those of the original.

| | original | this model |
|---|---|---|
{table}

{where}Outputs were compared on {_cell(record.verified_on)}.
SHA-256 of the original: `{record.source_sha256}`. Made by {made}.

To measure it again: `trp-onnx verify {_cell(path.name)} --original ORIGINAL --data DATA`.

## Plan

```toml
{record.plan.rstrip()}
```
"""


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|")
