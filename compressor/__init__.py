"""compressor: turns a fine-tuned BERT into a family of deployable ONNX sizes.

Importing it is light. Two things happen: `compressor.losses`, `compressor.load_recipe` and the like are loaded when
they are first used; and once transformers' model registry is loaded (before or after), it learns to read the folder
of a size, so that `AutoModelForSequenceClassification.from_pretrained(<size folder>)` gives the trained size back.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import wrapt

from compressor.errors import CompressorError
from compressor.version import __version__

if TYPE_CHECKING:
    from compressor import losses
    from compressor.engine import plan, run
    from compressor.models import load_size as load
    from compressor.recipe import Recipe, load_recipe

_LAZY = {
    "Recipe": ("compressor.recipe", "Recipe"),
    "load": ("compressor.models", "load_size"),
    "load_recipe": ("compressor.recipe", "load_recipe"),
    "plan": ("compressor.engine", "plan"),
    "run": ("compressor.engine", "run"),
}
__all__ = ["CompressorError", "Recipe", "__version__", "load", "load_recipe", "losses", "plan", "run"]


def __getattr__(name: str) -> Any:
    if name == "losses":
        return import_module("compressor.losses")
    if name in _LAZY:
        module, attribute = _LAZY[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'compressor' has no attribute {name!r}")


wrapt.register_post_import_hook("compressor.supernet.extraction:register", "transformers.models.auto.modeling_auto")
