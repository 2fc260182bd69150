"""Stage `search`: sizes that the grid does not have."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from compressor.settings import Count
from compressor.stages.base import Stage

if TYPE_CHECKING:
    from compressor.context import Context
    from compressor.search.latency import LatencyModel
    from compressor.search.loop import Evaluations
    from compressor.search.scoring import Scorer
    from compressor.search.space import Candidate
    from compressor.supernet.subnetworks import Subnetwork
    from compressor.supernet.supernetwork import SuperNetwork


class Search(Stage):
    """Search the trained super-network, without training, for better sizes than the grid's: any heads and neurons of
    any layers. For the latency of each of the grid's sizes one search, and what it finds is exported beside the grid.

    A sub-network is scored by the metric on `examples` rows that no stage trained on: the part of the training data
    that `data.selection` holds out, or a file of `rows` in the form of the training data. The `finalists` best of each
    latency are scored again on all of these rows. Latency is a model, fitted to sub-networks that are exported and
    timed on this machine; its error is told. The validation data is not looked at.

    `tpe` and `evolution` are NNI's; `random` is the control.
    """

    type: Literal["search"] = "search"
    algorithm: Literal["tpe", "evolution", "random"] = "tpe"
    evaluations: Count = 300
    minutes: Annotated[float, Field(gt=0)] | None = None
    rows: str | None = None
    examples: Count = 500
    finalists: Count = 5
    batch_size: Count = 64
    precision: Literal["fp32", "int8"] = "int8"
    timed_batch_size: Count = 1
    timed_length: Count | None = None
    threads: Count = 1

    needs: ClassVar[tuple[str, ...]] = ("width",)
    precedes: ClassVar[tuple[str, ...]] = ("export",)
    reads: ClassVar[frozenset[str]] = frozenset({"family"})
    resumes: ClassVar[str] = "evaluations.jsonl"

    def check(self, context: "Context", path: str) -> None:
        from compressor.errors import CompressorError
        from compressor.search.tuners import tuner_of

        tuner_of(self.algorithm, {}, 0)
        if self.rows is None and not context.recipe.data.selection:
            raise CompressorError(
                f"{path}: there are no rows to choose by that no stage trains on: hold some out with data.selection, "
                "or give rows: FILE"
            )
        longest = context.recipe.data.max_length
        if self.timed_length is not None and self.timed_length > longest:
            raise CompressorError(f"{path}: timed_length {self.timed_length} is more than data.max_length {longest}")
        if self.rows is not None:
            context.more_rows(self.rows)

    def run(self, context: "Context") -> str:
        from compressor.search.loop import Evaluations, finalists, winners

        supernet = context.latest()
        supernet.train(False)
        grid = context.sizes(supernet.dimensions)
        latency = self._latency(context, supernet, grid)
        targets = sorted({latency.milliseconds(size) for size in grid.values()})[:-1]
        some, all_rows = self._scorers(context, supernet)
        tried = Evaluations(latency, some, context.partial / self.resumes)
        self._explore(context, supernet, tried, latency, grid, targets)
        best = Evaluations(latency, all_rows, context.partial / "finalists.jsonl")
        self._score_again(context, best, [*grid.values(), *finalists(tried.known, targets, self.finalists)])
        points = best.of(grid.values())
        chosen = winners(best.known, list(points.values()), targets)
        self._write(context, {name: points[size] for name, size in grid.items()}, chosen, best.known)
        return (
            f"{len(chosen)} sizes that beat the grid on {all_rows.rows} rows, of {len(tried.known)} that were "
            f"tried; predicted latencies are off by {latency.error:.1%} in the mean, {latency.worst:.1%} at worst"
        )

    def _latency(self, context: "Context", supernet: "SuperNetwork", grid: dict[str, "Subnetwork"]) -> "LatencyModel":
        """A search that goes on keeps the latencies that it began with."""
        from dataclasses import asdict

        from compressor.files import read_json, write_json
        from compressor.search.latency import Conditions, LatencyModel, fit, measure, sample

        known = context.partial / "latency.json"
        if not known.is_file():
            length = self.timed_length or context.recipe.data.max_length
            conditions = Conditions(self.precision, self.timed_batch_size, length, self.threads)
            timed = [*grid.values(), *sample(supernet.dimensions, context.recipe.seed)]
            names = context.shipped_data.tokenizer.model_input_names
            measured = measure(supernet, names, timed, conditions, context.partial / "graphs")
            write_json(known, asdict(fit(measured)))
        return LatencyModel(**read_json(known))

    def _explore(
        self,
        context: "Context",
        supernet: "SuperNetwork",
        tried: "Evaluations",
        latency: "LatencyModel",
        grid: dict[str, "Subnetwork"],
        targets: list[float],
    ) -> None:
        """The grid, then what tuners suggest for each latency."""
        from compressor.search.loop import search
        from compressor.search.space import Space
        from compressor.search.tuners import tuner_of
        from compressor.seeds import seed_of

        space, seed = Space(supernet.dimensions), context.recipe.seed
        tuners = {
            target: tuner_of(self.algorithm, space.parameters(), seed_of(seed, "search", place))
            for place, target in enumerate(targets)
        }
        even = [space.even(kept) for kept in dict.fromkeys(size.kept for size in grid.values())]
        tried.of(grid.values())
        with context.progress.task(self.type, self.evaluations) as shown:
            search(space, tried, tuners, latency.milliseconds, even, self.evaluations, self.minutes, shown.advance)

    def _score_again(self, context: "Context", best: "Evaluations", sizes: list["Subnetwork"]) -> None:
        """One by one: each costs a while, and is logged."""
        with context.progress.task(f"{self.type}, finalists", len(sizes)) as shown:
            for size in sizes:
                best.of([size])
                shown.advance()

    def _write(
        self,
        context: "Context",
        grid: dict[str, "Candidate"],
        chosen: list["Candidate"],
        scored: list["Candidate"],
    ) -> None:
        import shutil

        from compressor.files import write_json
        from compressor.search.loop import describe
        from compressor.search.picture import draw

        for name in (self.resumes, "finalists.jsonl", "latency.json"):
            shutil.copyfile(context.partial / name, context.folder / name)
        sizes = {f"search-{place}": describe(candidate) for place, candidate in enumerate(chosen, start=1)}
        points = {name: describe(candidate) for name, candidate in grid.items()}
        write_json(context.folder / "sizes.json", {"grid": points, "sizes": sizes})
        draw(context.folder / "front.svg", grid.values(), scored, chosen, context.data.task.metric)

    def _scorers(self, context: "Context", supernet: "SuperNetwork") -> tuple["Scorer", "Scorer"]:
        """On some of the rows that are held out, and on all of them."""
        from compressor.data import shortest_first
        from compressor.search.scoring import Scorer
        from compressor.training import predict, whole_model

        data = context.shipped_data
        held_out = data.selection if self.rows is None else context.more_rows(self.rows)
        assert held_out is not None  # the recipe was checked
        scorers = []
        for count in (self.examples, len(held_out)):
            drawn = held_out.shuffle(seed=context.recipe.seed).select(range(min(count, len(held_out))))
            rows = shortest_first(drawn)
            batches, answers = data.batches(rows, self.batch_size), data.labels(rows)
            if answers is None:
                answers = data.task.predict(predict(whole_model(supernet.model), batches))
            scorers.append(Scorer(supernet, batches, data.task, answers))
        return scorers[0], scorers[1]
