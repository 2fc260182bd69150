"""compressor: turns a fine-tuned BERT into a family of deployable ONNX sizes.

Importing it is light. Two things happen: `compressor.losses`, `compressor.load_recipe` and the like are loaded when
they are first used; and once transformers' model registry is loaded (before or after), it learns to read the sizes
of a family, so that `AutoModelForSequenceClassification.from_pretrained(<size folder>)` gives the trained size back.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import wrapt

from compressor.errors import CompressorError
from compressor.version import __version__

if TYPE_CHECKING:
    from compressor import losses
    from compressor.engine import plan, run
    from compressor.recipe import Recipe, load_recipe

_LAZY = {
    "Recipe": "compressor.recipe",
    "load_recipe": "compressor.recipe",
    "plan": "compressor.engine",
    "run": "compressor.engine",
}
__all__ = ["CompressorError", "Recipe", "__version__", "load_recipe", "losses", "plan", "run"]


def __getattr__(name: str) -> Any:
    if name == "losses":
        return import_module("compressor.losses")
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'compressor' has no attribute {name!r}")


wrapt.register_post_import_hook("compressor.supernet.extraction:register", "transformers.models.auto.modeling_auto")
