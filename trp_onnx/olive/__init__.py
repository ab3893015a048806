"""Low rank as a pass of [Olive](https://microsoft.github.io/Olive), in whose workflows it is called `TrpCompression`.

Olive finds passes by a package configuration. `python -m trp_onnx.olive` prints that of the installed Olive, with this
pass added:

    python -m trp_onnx.olive > packages.json
    olive run --config workflow.json --package-config packages.json
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

import trp_onnx
from trp_onnx.graph.model import external_files
from trp_onnx.job.search_space import SCHEME_CHOICES

try:
    from olive.common.config_utils import validate_config
    from olive.data.config import DataConfig
    from olive.model import ONNXModelHandler
    from olive.model.utils import resolve_onnx_path
    from olive.passes import Pass
    from olive.passes.pass_config import PassConfigParam
    from olive.search.search_parameter import Categorical
except ImportError as error:
    raise ImportError(
        f"trp_onnx.olive is a pass of Olive, which cannot be imported here ({error}): pip install olive-ai",
        name=__name__,
    ) from error

logger = logging.getLogger("olive.trp_onnx")  # below its own, so that its log shows it

MODULE: Final = {
    "module_path": f"{__name__}.TrpCompression",
    "supported_providers": ["*"],
    "supported_accelerators": ["*"],
    "supported_precisions": ["*"],
    "dataset": "dataset_optional",
}
"""What Olive's package configuration says of the pass."""


class TrpCompression(Pass):  # type: ignore[misc]  # Olive has no types
    """Replace layers by low-rank factors, and remove channels where samples are given; see `trp_onnx.compress`."""

    @classmethod
    def _default_config(cls, accelerator_spec: Any) -> dict[str, Any]:
        def goal(text: str) -> Any:
            """A list in its place is searched through: Olive asks for a default search, which is one value."""
            return PassConfigParam(type_=float, search_defaults=Categorical([None]), description=text)

        def switch(text: str, default: bool | None = None) -> Any:
            return PassConfigParam(type_=bool, default_value=default, description=text)

        return {
            "macs": goal("Keep at most this part of the MACs, between 0 and 1."),
            "speedup": goal("Make the network this many times as fast, as measured on this machine."),
            "max_drop": goal("Lose at most this many points of agreement with the original; needs data_config."),
            "scheme": PassConfigParam(
                type_=str, default_value="auto", description=f"How layers are split: {', '.join(SCHEME_CHOICES)}."
            ),
            "asymmetric": switch("Fit each layer to make up for those compressed before it; needs data_config.", False),
            "widths": switch("Whether channels may be removed; where not said, they may if the scheme is auto."),
            "threads": PassConfigParam(
                type_=int, default_value=1, description="Intra-op threads that the speed-up is meant for."
            ),
            "data_config": PassConfigParam(
                type_=DataConfig | dict, default_value=None, description="Samples to fit ranks and factors to."
            ),
        }

    def _run_for_config(self, model: Any, config: Any, output_model_path: str) -> Any:
        if not isinstance(model, ONNXModelHandler):
            raise ValueError(f"TrpCompression takes an ONNX model, not {type(model).__name__}: convert it before")
        out = Path(resolve_onnx_path(output_model_path, Path(model.model_path).name))
        result = trp_onnx.compress(
            model.model_path,
            out,
            trp_onnx.Goal(macs=config.macs, speedup=config.speedup, max_drop=config.max_drop),
            data=_samples(config.data_config, model),
            search=trp_onnx.SearchSpace(scheme=config.scheme, asymmetric=config.asymmetric, widths=config.widths),
            device=trp_onnx.Device(threads=config.threads),
        )
        logger.info("%s", result)
        for warning in result.report.warnings:
            logger.warning("%s", warning)
        if external_files(out):
            return ONNXModelHandler(model_path=str(out.parent), onnx_file_name=out.name)
        return ONNXModelHandler(model_path=str(out))


def _samples(data_config: Any, model: Any) -> Any:
    """What Olive's calibration reader yields: feeds by input, without labels."""
    if data_config is None:
        return None
    container = validate_config(data_config, DataConfig).to_data_container()
    return container.create_calibration_dataloader(model_path=model.model_path, io_config=model.io_config)
