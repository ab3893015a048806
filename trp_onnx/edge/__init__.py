"""What an app ships: the `.ort` file, what a reduced build must hold, and what phones can do with it.

`exporting` puts a folder together from `ort_format` (the runtime's own converter), `usability` (what each mobile
provider takes), `advice` (what it asks of shapes and ranks) and a manifest.
"""

from trp_onnx.edge.advice import Advice
from trp_onnx.edge.exporting import Export, export
from trp_onnx.edge.usability import Usability

__all__ = ["Advice", "Export", "Usability", "export"]
