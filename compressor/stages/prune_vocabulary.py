"""Stage `prune_vocabulary`: only the tokens that texts use."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from compressor.settings import Corpus, Count
from compressor.stages.base import Stage

if TYPE_CHECKING:
    from compressor.context import Context


class PruneVocabulary(Stage):
    """Take out of the vocabulary, and of the embeddings, what the texts do not use; small sizes are mostly embeddings.

    Tokens stay that stand at least `min_count` times in the recipe's texts, training and unlabelled ones, or in a
    `corpus` beside them; single characters, bytes and special tokens always do. Texts of these tokens are cut, and
    answered, as before; others are cut into smaller pieces. `vocabulary.json` and the manifest say what that costs on
    the validation data, whose texts are not looked at before.
    """

    type: Literal["prune_vocabulary"] = "prune_vocabulary"
    corpus: Corpus | None = None
    min_count: Count = 1

    precedes: ClassVar[tuple[str, ...]] = ("search", "export")
    reads: ClassVar[frozenset[str]] = frozenset({"unlabelled", "validation"})
    checkpoint: ClassVar[bool] = True

    def check(self, context: "Context", path: str) -> None:
        from compressor.data import open_corpus
        from compressor.errors import CompressorError
        from compressor.vocabulary import check_prunable

        try:
            check_prunable(context.data.tokenizer)
        except CompressorError as error:
            raise CompressorError(f"{path}: {error}") from error
        if self.corpus:
            open_corpus(self.corpus, context.recipe.seed)

    def run(self, context: "Context") -> str:
        from compressor import models
        from compressor.files import write_json
        from compressor.vocabulary import compare, kept_tokens, prune_embeddings, prune_tokenizer

        model, tokenizer = context.latest().model, context.data.tokenizer
        kept = kept_tokens(tokenizer, self._counts(context), self.min_count)
        pruned = prune_tokenizer(tokenizer, kept)
        prune_embeddings(model, kept)
        models.save(model, pruned, context.folder)
        found = compare(context.data.validation, context.cut_by(pruned).validation, tokenizer, pruned)
        write_json(context.folder / "vocabulary.json", {"before": len(tokenizer), "after": len(kept), **found})
        return (
            f"{len(kept):,} of {len(tokenizer):,} tokens; of validation texts {found['texts_cut_otherwise']:.1%} "
            f"are cut otherwise, {found['unknown_after']:.2%} of tokens unknown ({found['unknown_before']:.2%} before)"
        )

    def _counts(self, context: "Context") -> Any:
        """How often each token stands in the texts, an array [tokens]."""
        from itertools import islice

        from compressor import models
        from compressor.data import open_corpus
        from compressor.vocabulary import used_counts

        tokenizer = context.data.tokenizer
        counts = used_counts(context.data.texts["input_ids"][:], len(tokenizer))
        if self.corpus:
            corpus = iter(open_corpus(self.corpus, context.recipe.seed)(0))
            with models.quiet():
                while texts := list(islice(corpus, 1000)):
                    counts += used_counts(tokenizer(texts)["input_ids"], len(tokenizer))
        return counts
