"""trp-onnx: low-rank compression of trained ONNX networks.

    import trp_onnx

    result = trp_onnx.compress("model.onnx", "small.onnx", trp_onnx.Goal(macs=0.5))
    print(result)

`dir(trp_onnx)` lists the commands and types, which stand in `__init__.pyi` and are loaded when they are first used:
importing the package costs nothing.
"""

from pathlib import Path

import lazy_loader

_HERE = Path(__file__).parent
if not (_HERE / "passes").is_dir():  # a checkout without links, as on Windows: the folder stands beside this one
    __path__.append(str(_HERE.parent))

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
