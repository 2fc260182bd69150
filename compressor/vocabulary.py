"""A smaller vocabulary: the tokens that texts use, and what any text can be spelled with."""

import json
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray

from compressor import models
from compressor.errors import CompressorError
from compressor.files import read_json, write_json

Ids = NDArray[np.int64]
_KINDS = ("WordPiece", "BPE", "Unigram")
# What marks a piece as the inside, the end or the beginning of a word, or as a byte, and is no character of it.
_BEGINNING = "▁"


def check_prunable(tokenizer: Any) -> None:
    """Raise CompressorError unless tokens can be taken out of a tokenizer's vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    kind = json.loads(backend.to_str())["model"].get("type") if backend else type(tokenizer).__name__
    if kind not in _KINDS:
        raise CompressorError(f"a vocabulary of kind {kind} cannot be pruned; those of kind {', '.join(_KINDS)} can")


def kept_tokens(tokenizer: Any, counts: Ids, minimum: int) -> Ids:
    """Ids that stay, ascending: tokens used often enough, single characters, added and special tokens.

    Everything up to the padding token stays too: RoBERTa counts positions from its id. Of byte-pair encoding, the
    tokens that a kept one is merged from stay with it. So every text whose tokens were used is cut as before, and any
    other one into smaller pieces.

    Args:
        counts: how often each id was used, [ids].
        minimum: how often is enough.
    """
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    model = description["model"]
    vocabulary = _vocabulary(model)
    kept = {int(token) for token in np.flatnonzero(counts >= minimum)}
    kept |= {token for piece, token in vocabulary.items() if _is_single(piece, model)}
    kept |= {token["id"] for token in description["added_tokens"]} | set(tokenizer.all_special_ids)
    kept |= set(range((tokenizer.pad_token_id or 0) + 1))
    if model["type"] == "BPE":
        kept = _with_parts(kept, vocabulary, _merges(model))
    return np.array(sorted(kept & set(range(len(tokenizer)))))


def _vocabulary(model: Mapping[str, Any]) -> dict[str, int]:
    if model["type"] == "Unigram":
        return {piece: place for place, (piece, _) in enumerate(model["vocab"])}
    return dict(model["vocab"])


def _is_single(piece: str, model: Mapping[str, Any]) -> bool:
    """Whether a piece is one character or one byte."""
    inside, end = (model.get(key) or "" for key in ("continuing_subword_prefix", "end_of_word_suffix"))
    bare = piece.removeprefix(inside).removesuffix(end).removeprefix(_BEGINNING)
    return len(bare) <= 1 or (bool(model.get("byte_fallback")) and bare.startswith("<0x"))


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs in their order; older files write a pair as one text with a space."""
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    return [(left, right) for left, right in pairs]


def _with_parts(kept: set[int], vocabulary: Mapping[str, int], merges: list[tuple[str, str]]) -> set[int]:
    found = set(kept)
    # A token is merged by a later rule than its parts were.
    for left, right in reversed(merges):
        if vocabulary.get(left + right) in found:
            found |= {vocabulary[left], vocabulary[right]}
    return found


def prune_tokenizer(tokenizer: Any, kept: Ids) -> Any:
    """The same tokenizer with some of its tokens; their ids are their places in `kept`, which ascends."""
    places = {int(token): place for place, token in enumerate(kept)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models.save_tokenizer(tokenizer, folder)
        for path in folder.iterdir():
            if path.name not in ("tokenizer.json", "tokenizer_config.json"):
                # Files of the older form hold the whole vocabulary.
                path.unlink()
        description = read_json(folder / "tokenizer.json")
        write_json(folder / "tokenizer.json", _pruned(description, places))
        pruned = models.load_tokenizer(folder)
    before, after = tokenizer.get_vocab(), pruned.get_vocab()
    if len(pruned) != len(kept) or any(places.get(before[piece]) != place for piece, place in after.items()):
        raise CompressorError(f"the vocabulary of {type(tokenizer).__name__} cannot be pruned: its ids did not follow")
    return pruned


def _pruned(description: dict[str, Any], places: Mapping[int, int]) -> dict[str, Any]:
    """`tokenizer.json` with some of the tokens, and ids in order."""
    model = dict(description["model"])
    if model["type"] == "Unigram":
        model["vocab"] = [entry for token, entry in enumerate(model["vocab"]) if token in places]
        if model.get("unk_id") is not None:
            model["unk_id"] = places[model["unk_id"]]
    else:
        model["vocab"] = {piece: places[token] for piece, token in model["vocab"].items() if token in places}
    if model["type"] == "BPE":
        known = model["vocab"]
        model["merges"] = [list(pair) for pair in _merges(model) if {*pair, "".join(pair)} <= known.keys()]
    added = [{**token, "id": places[token["id"]]} for token in description["added_tokens"]]
    processor = _renumbered(description["post_processor"], places)
    return {**description, "model": model, "added_tokens": added, "post_processor": processor}


def _renumbered(processor: Any, places: Mapping[int, int]) -> Any:
    """A post-processor with new ids: those of templates stand in `ids`, of BERT's and RoBERTa's in `[token, id]`."""
    if isinstance(processor, list):
        return [_renumbered(part, places) for part in processor]
    if not isinstance(processor, dict):
        return processor
    changed = {key: _renumbered(value, places) for key, value in processor.items()}
    if "ids" in changed:
        changed["ids"] = [places[token] for token in processor["ids"]]
    for key in {"sep", "cls"} & processor.keys():
        piece, token = processor[key]
        changed[key] = [piece, places[token]]
    return changed


@torch.no_grad()
def prune_embeddings(model: Any, kept: Ids) -> None:
    """Keep those rows of a model's word embeddings, in place; its configuration follows."""
    old = model.get_input_embeddings()
    new = torch.nn.Embedding(len(kept), old.embedding_dim, padding_idx=old.padding_idx)
    new.weight.copy_(old.weight[torch.from_numpy(kept)])
    new.weight.requires_grad = old.weight.requires_grad
    model.set_input_embeddings(new.to(old.weight))
    places = {int(token): place for place, token in enumerate(kept)}
    model.config.vocab_size = len(kept)
    for key in ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id"):
        token = getattr(model.config, key, None)
        if isinstance(token, int):
            setattr(model.config, key, places.get(token))


def used_counts(rows: Collection[list[int]], tokens: int) -> Ids:
    """How often each of so many ids stands in rows of ids."""
    if not rows:
        return np.zeros(tokens, dtype=np.int64)
    return np.bincount(np.concatenate([np.asarray(row, dtype=np.int64) for row in rows]), minlength=tokens)


def compare(before: datasets.Dataset, after: datasets.Dataset, tokenizer: Any, pruned: Any) -> dict[str, float]:
    """What pruning did to the same texts, cut by both tokenizers: rates of unknown tokens, and texts cut otherwise."""
    otherwise = tokens = tokens_after = unknown = unknown_after = 0
    for old, new in zip(before["input_ids"][:], after["input_ids"][:], strict=True):
        tokens += len(old)
        tokens_after += len(new)
        unknown += old.count(tokenizer.unk_token_id)
        unknown_after += new.count(pruned.unk_token_id)
        otherwise += tokenizer.convert_ids_to_tokens(old) != pruned.convert_ids_to_tokens(new)
    return {
        "unknown_before": unknown / tokens,
        "unknown_after": unknown_after / tokens_after,
        "texts_cut_otherwise": otherwise / len(before),
        "tokens_ratio": tokens_after / tokens,
    }
