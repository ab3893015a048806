"""Print the package configuration of the installed Olive, with the pass of this package added."""

from __future__ import annotations

import json
from pathlib import Path

from olive.package_config import OlivePackageConfig

from trp_onnx.olive import MODULE, TrpCompression

known = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text(encoding="utf-8"))
known["passes"][TrpCompression.__name__] = MODULE
print(json.dumps(known, indent=2))
