"""Models and tokenizers from a folder, from the hub or from nothing, and saving them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
)
from transformers.initialization import no_init_weights
from transformers.utils import logging

from compressor.errors import CompressorError, one_line
from compressor.export.manifest import WEIGHTS, checked_file, read_manifest
from compressor.export.weights import read_weights
from compressor.files import make_readable
from compressor.recipe import ScratchModel
from compressor.supernet.architectures import architecture_of, dimensions_of
from compressor.supernet.extraction import extract, is_sized
from compressor.supernet.subnetworks import Subnetwork
from compressor.supernet.supernetwork import SuperNetwork
from compressor.tasks import Classification, Task


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no load reports of transformers: what they say is checked here."""
    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load_config(source: str | ScratchModel) -> Any:
    """The configuration of a model that can be cut.

    Raises:
        CompressorError: there is no such model, it is no supported encoder, or its heads do not divide its width.
    """
    if isinstance(source, ScratchModel):
        config = _new_config(source, vocabulary=1)
    else:
        _check_folder(source)
        with reading(source), quiet():
            config = AutoConfig.from_pretrained(source)
    if is_sized(config):
        raise CompressorError(f"model: {source} is a size cut out of a family already; give the model it was cut from")
    architecture_of(config.model_type)
    dimensions_of(config)
    return config


def _check_folder(source: str) -> None:
    """A path that does not exist must not be taken for a hub name."""
    folder = Path(source)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CompressorError(f"model: the folder {source} holds no config.json")
    elif folder.is_absolute() or source.startswith(("./", "../", "~")) or source.count("/") > 1:
        raise CompressorError(f"model: there is no folder {source}")


@contextmanager
def reading(source: str) -> Iterator[None]:
    """Whatever transformers raises while it loads, as one line."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise CompressorError(
            f"model: {source} cannot be loaded: {one_line(error)}; where no hub is reachable, give a local folder"
        ) from error


def trained_labels(config: Any) -> tuple[str, ...] | None:
    """Label names of a configuration whose model has a classification head; None where it has none."""
    heads = config.architectures or []
    if not any(name.endswith("ForSequenceClassification") for name in heads):
        return None
    return tuple(config.id2label[index] for index in sorted(config.id2label))


def load_model(source: str | Path, task: Task) -> tuple[Any, bool]:
    """A classifier from a folder or the hub, and whether its head is trained.

    Raises:
        CompressorError: encoder weights are missing, or the head does not fit the task.
    """
    config = load_config(str(source))
    labels = trained_labels(config)
    if labels is not None and len(labels) != task.outputs:
        raise CompressorError(
            f"model: {source} has a head with {len(labels)} outputs, the task needs {task.outputs} "
            f"({', '.join(task.labels) if isinstance(task, Classification) else 'a number'})"
        )
    with reading(str(source)), quiet():
        model, report = AutoModelForSequenceClassification.from_pretrained(
            str(source), output_loading_info=True, use_safetensors=True, **task.config()
        )
    missing = set(report["missing_keys"])
    encoder = model.base_model_prefix + "."
    lost = sorted(key for key in missing if key.startswith(encoder) and not key.startswith(encoder + "pooler"))
    if lost:
        raise CompressorError(f"model: {source} lacks {len(lost)} encoder weights, {lost[0]} among them")
    return model, not missing


def load_tokenizer(source: str | Path) -> Any:
    """The tokenizer of a folder or hub model."""
    with reading(str(source)), quiet():
        return AutoTokenizer.from_pretrained(str(source))


def new_model(settings: ScratchModel, tokenizer: Any, task: Task) -> Any:
    """A model with random weights."""
    config = _new_config(settings, len(tokenizer))
    config.update(task.config())
    return BertForSequenceClassification(config)


def _new_config(settings: ScratchModel, vocabulary: int) -> Any:
    return BertConfig(
        vocab_size=vocabulary,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        hidden_size=settings.hidden,
        intermediate_size=settings.intermediate,
        max_position_embeddings=settings.max_positions,
        hidden_dropout_prob=settings.dropout,
        attention_probs_dropout_prob=settings.dropout,
        # Signals keep their size from layer to layer; BERT's 0.02 suits its 768 and leaves a narrow model stuck.
        initializer_range=settings.hidden**-0.5,
    )


def new_tokenizer(settings: ScratchModel, texts: list[str]) -> Any:
    """A WordPiece tokenizer whose vocabulary is every word and character of the texts."""
    words = sorted({word for text in texts for word in text.lower().split()})
    characters = sorted({character for word in words for character in word})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *characters, *(f"##{character}" for character in characters), *words]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    return BertTokenizerFast(tokenizer_object=core, model_max_length=settings.max_positions)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Model and tokenizer as `from_pretrained` reads them."""
    with quiet():
        model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    make_readable(folder)


def save_tokenizer(tokenizer: Any, folder: Path) -> tuple[str, ...]:
    """Write the files of a tokenizer and say how they are called."""
    with quiet():
        files = [Path(file) for file in tokenizer.save_pretrained(folder)]
    # It names files that it might have written, too.
    return tuple(sorted({file.name for file in files if file.is_file()}))


def longest_input(config: Any) -> int:
    """Tokens that the model has positions for; RoBERTa's begin behind the padding index."""
    reserved = config.pad_token_id + 1 if config.model_type == "roberta" else 0
    return int(config.max_position_embeddings) - reserved


def load_size(family: str | Path, name: str) -> Any:
    """One size of a family as a PyTorch model in eval mode, which trains further and saves as a folder of its own.

    Args:
        family: the folder with `family.json`.
        name: such as `w0.50-d0.75`.

    Raises:
        CompressorError: there is no such size, or a file was changed.
    """
    return size_loader(Path(family))(name)


def size_loader(folder: Path) -> Callable[[str], Any]:
    """What loads sizes of a family by name, as `load_size` does one; shared weights are read once.

    Raises:
        CompressorError: a file was changed.
    """
    manifest = read_manifest(folder)

    def load_alone(name: str) -> Any:
        size = folder / manifest.size(name).name
        checked_file(folder, manifest, f"{name}/{WEIGHTS['fp32']}")
        with reading(str(size)), quiet():
            return AutoModelForSequenceClassification.from_pretrained(str(size))

    if manifest.layout == "standalone":
        return load_alone
    weights = read_weights(checked_file(folder, manifest, WEIGHTS["fp32"]))
    with reading(str(folder)), no_init_weights():
        model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**manifest.config))
        model.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()}, strict=True)
    supernet = SuperNetwork(model)

    def cut(name: str) -> Any:
        size = manifest.size(name)
        return extract(supernet, Subnetwork(size.kept_layers, size.heads, size.neurons))

    return cut
