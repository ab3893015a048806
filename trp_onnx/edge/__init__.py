"""What an app ships: the `.ort` file, what a reduced build must hold, what phones can do with it, and int8.

`exporting` puts a folder together from `ort_format` (the runtime's own converter), `usability` (what each mobile
provider takes), `advice` (what it asks of shapes and ranks) and a manifest. `quantization` makes int8 of a float model,
`sensitivity` finds what int8 hurts, and the pass `balance_factors` evens out what flows between factors.
"""

from trp_onnx.edge.exporting import Export, export
from trp_onnx.edge.quantization import Quantized, quantize
from trp_onnx.edge.usability import Usability

__all__ = ["Export", "Quantized", "Usability", "export", "quantize"]
