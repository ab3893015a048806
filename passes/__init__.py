"""Graph passes: graph in, graph out, one class a file, each an `onnx_ir` pass.

`normalise` runs the common passes of onnx_ir (inline functions, lift constants, drop initializers from
the inputs) and then, from here, `SimplifyPass` and `FoldBatchNormPass`. `FactorisePass` carries out a
plan, `ReplaceWeightsPass` refits what it keeps, `FoldWeightsPass` and `BalanceFactorsPass` prepare a
model for int8. What onnx_ir already has is used from there and not wrapped.
"""

from trp_onnx.passes.balance_factors import BalanceFactorsPass
from trp_onnx.passes.clean_up import CleanUpPass
from trp_onnx.passes.factorise import FactorisePass
from trp_onnx.passes.fold_batch_norm import FoldBatchNormPass
from trp_onnx.passes.fold_weights import FoldWeightsPass
from trp_onnx.passes.lift_constants import LiftConstantsPass
from trp_onnx.passes.replace_weights import ReplaceWeightsPass
from trp_onnx.passes.simplify import SimplifyPass

__all__ = [
    "BalanceFactorsPass",
    "CleanUpPass",
    "FactorisePass",
    "FoldBatchNormPass",
    "FoldWeightsPass",
    "LiftConstantsPass",
    "ReplaceWeightsPass",
    "SimplifyPass",
]
