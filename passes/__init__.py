"""Graph passes: graph in, graph out, one class a file, each an `onnx_ir` pass.

`normalise` is a sequence of the common passes of onnx_ir (inline functions, lift constants, drop initializers
from the inputs) and, from here, `SimplifyPass`, which `CheckedPass` undoes where outputs change,
`FoldBatchNormPass` and `UniqueNamesPass`. `FactorisePass` carries out a plan, `CutChannelsPass` removes
channels from a whole network, which `TurnSpacesPass` turns to components where they are linear, `ReplaceWeightsPass`
refits what is kept, `FoldWeightsPass` and `BalanceFactorsPass` prepare a model for int8. All of them find the layers
themselves and say what they require: they run in anybody's `onnx_ir.passes.Sequential`. What onnx_ir already has is
used from there and not wrapped.
"""

from trp_onnx.passes.balance_factors import BalanceFactorsPass
from trp_onnx.passes.checked import CheckedPass
from trp_onnx.passes.clean_up import CleanUpPass
from trp_onnx.passes.cut_channels import CutChannelsPass
from trp_onnx.passes.factorise import FactorisePass
from trp_onnx.passes.fold_batch_norm import FoldBatchNormPass
from trp_onnx.passes.fold_weights import FoldWeightsPass
from trp_onnx.passes.lift_constants import LiftConstantsPass
from trp_onnx.passes.replace_weights import ReplaceWeightsPass
from trp_onnx.passes.simplify import SimplifyPass
from trp_onnx.passes.turn_spaces import TurnSpacesPass
from trp_onnx.passes.unique_names import UniqueNamesPass

__all__ = [
    "BalanceFactorsPass",
    "CheckedPass",
    "CleanUpPass",
    "CutChannelsPass",
    "FactorisePass",
    "FoldBatchNormPass",
    "FoldWeightsPass",
    "LiftConstantsPass",
    "ReplaceWeightsPass",
    "SimplifyPass",
    "TurnSpacesPass",
    "UniqueNamesPass",
]
