"""The sizes that a recipe would make, from the model's configuration alone: no weights are read."""

import torch
from transformers import AutoModelForSequenceClassification

from compressor import data, models
from compressor.recipe import Recipe, ScratchModel
from compressor.students import family_config
from compressor.supernet.subnetworks import encoder_macs, grid
from compressor.supernet.supernetwork import SuperNetwork


def planned_sizes(recipe: Recipe) -> list[tuple[str, ...]]:
    """Rows of name, kept layers, heads, neurons, parameters and MACs at `data.max_length`."""
    config = family_config(recipe, models.load_config(recipe.model))
    if isinstance(recipe.model, ScratchModel):
        # Its vocabulary is made of the training texts.
        texts = data.read(recipe.data, "train", recipe.seed).column("text")
        config.vocab_size = len(models.new_tokenizer(recipe.model, texts))
    with torch.device("meta"):
        supernet = SuperNetwork(AutoModelForSequenceClassification.from_config(config))
    family = recipe.family
    sizes = grid(supernet.dimensions, family.widths, family.depths, family.depth_rule)
    return [
        (
            name,
            " ".join(str(layer) for layer in size.kept),
            str(size.heads[0]),
            str(size.neurons[0]),
            f"{supernet.parameters(size) / 1e6:.2f} M",
            f"{encoder_macs(size, supernet.dimensions, recipe.data.max_length) / 1e6:,.1f} M",
        )
        for name, size in sizes.items()
    ]
