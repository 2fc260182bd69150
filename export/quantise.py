"""Dynamic int8 quantisation."""

import logging
import platform
from pathlib import Path

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from compressor.export.graph import no_log_below


def quantise(source: Path, target: Path) -> None:
    """Write the int8 form of a graph: weights per channel, activations as they come.

    Only matrix products with weights are quantised; signed weights run more than twice as fast as unsigned ones
    on processors with VNNI.
    """
    model = onnx.load(source)
    # Shapes noted by an exporter carry names that the quantiser's own shape inference contradicts.
    del model.graph.value_info[:]
    with no_log_below(logging.ERROR, None):
        quantize_dynamic(
            model,
            target,
            per_channel=True,
            reduce_range=needs_reduced_range(),
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
        )


def needs_reduced_range() -> bool:
    """Whether int8 products can overflow here: x86 without VNNI adds pairs of products in 16 bits."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return x86 and not torch.cpu._is_vnni_supported()
