"""What leaves the training machine: ONNX graphs, shared weights, parity, the family's manifest, and what serves it.

`from compressor.export import Family` loads a family; it imports onnxruntime, tokenizers and numpy, but no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressor.export.family import Family

__all__ = ["Family"]


def __getattr__(name: str) -> Any:
    # Late: those that export have no use for a runtime.
    if name == "Family":
        from compressor.export.family import Family

        return Family
    raise AttributeError(f"module 'compressor.export' has no attribute {name!r}")
