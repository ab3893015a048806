"""int8 of a float model.

`quantizer` makes it, `sensitivity` finds what int8 hurts, and the pass `balance_factors` evens out what flows between
factors.
"""

from trp_onnx.quantization.quantizer import Quantized, Variant, quantize
from trp_onnx.quantization.sensitivity import InFloat

__all__ = ["InFloat", "Quantized", "Variant", "quantize"]
