"""Stage `search`: sizes that the grid does not have."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from compressor.settings import Count
from compressor.stages.base import Stage

if TYPE_CHECKING:
    from compressor.context import Context
    from compressor.search.latency import LatencyModel
    from compressor.search.scoring import Scorer
    from compressor.search.space import Candidate
    from compressor.search.tuners import Tuner
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
        import shutil

        from compressor.files import write_json
        from compressor.search.loop import Evaluations, describe, finalists, search, winners
        from compressor.search.picture import draw
        from compressor.search.space import Space

        supernet = context.latest()
        supernet.train(False)
        grid = context.sizes(supernet.dimensions)
        latency = self._latency(context, supernet, grid)
        cost, (some, all_rows) = latency.milliseconds, self._scorers(context, supernet)
        evaluations = Evaluations(latency, some, context.partial / self.resumes)
        tuners = self._tuners(context, supernet, sorted({cost(size) for size in grid.values()})[:-1])
        evaluations.of(grid.values())
        with context.progress.task(self.type, self.evaluations) as shown:
            space = Space(supernet.dimensions)
            even = [space.even(kept) for kept in dict.fromkeys(size.kept for size in grid.values())]
            search(space, evaluations, tuners, cost, even, self.evaluations, self.minutes, shown.advance)
        best = Evaluations(latency, all_rows, context.partial / "finalists.jsonl")
        points = best.of(grid.values())
        left = finalists(evaluations.known, tuners, self.finalists)
        found: dict[Subnetwork, Candidate] = {}
        with context.progress.task(f"{self.type}, finalists", len(left)) as shown:
            for size in left:
                found |= best.of([size])
                shown.advance()
        chosen = winners(list(found.values()), list(points.values()), tuners)
        for file in context.partial.glob("*.json*"):
            shutil.copyfile(file, context.folder / file.name)
        described = {name: describe(points[size]) for name, size in grid.items()}
        sizes = {f"search-{place}": describe(candidate) for place, candidate in enumerate(chosen, start=1)}
        write_json(context.folder / "sizes.json", {"grid": described, "sizes": sizes})
        draw(context.folder / "front.svg", points.values(), best.known, chosen, context.data.task.metric)
        return (
            f"{len(chosen)} sizes that beat the grid on {all_rows.rows} rows, of {len(evaluations.known)} that were "
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

    def _tuners(self, context: "Context", supernet: "SuperNetwork", targets: list[float]) -> dict[float, "Tuner"]:
        from compressor.search.space import Space
        from compressor.search.tuners import tuner_of
        from compressor.seeds import seed_of

        parameters = Space(supernet.dimensions).parameters()
        return {
            target: tuner_of(self.algorithm, parameters, seed_of(context.recipe.seed, "search", place))
            for place, target in enumerate(targets)
        }

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
