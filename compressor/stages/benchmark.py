"""Stage `benchmark`: the latency of every size on this machine."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from compressor.settings import Count
from compressor.stages.base import Stage

if TYPE_CHECKING:
    from compressor.context import Context


class Benchmark(Stage):
    """Median latency of the teacher in PyTorch and of every ONNX file at one batch size, length and thread count.

    All are measured in turn, round after round, so that a noisy moment of the machine hits all of them alike:
    their ratios mean more than the milliseconds. `length: null` takes `data.max_length`.
    """

    type: Literal["benchmark"] = "benchmark"
    batch_size: Count = 1
    length: Count | None = None
    threads: Count = 1
    rounds: Count = 30

    needs: ClassVar[tuple[str, ...]] = ("export",)
    delivers: ClassVar[tuple[str, ...]] = ("family/family.json",)

    def run(self, context: "Context") -> str:
        from functools import partial

        from compressor.errors import CompressorError
        from compressor.export.latency import interleaved, ones
        from compressor.export.manifest import Latency, read_manifest, write_manifest
        from compressor.export.session import Session
        from compressor.files import write_json
        from compressor.machine import describe_machine

        folder = context.family_folder
        family = read_manifest(folder)
        length = self.length or family.max_length
        if length > family.max_length:
            raise CompressorError(
                f"stages (benchmark): length {length} is more than data.max_length {family.max_length}"
            )
        names = context.data.tokenizer.model_input_names
        inputs = ones(names, self.batch_size, length)
        calls: dict[tuple[str, str], Any] = {
            ("teacher", "torch"): _torch_call(context.teacher().model, inputs, self.threads)
        }
        for size in family.sizes:
            for kind, graph in size.graphs.items():
                calls[size.name, kind] = partial(Session(folder / graph, self.threads).run, inputs)
        with context.progress.task(self.type, self.rounds) as shown:
            measured = interleaved(calls, self.rounds, shown.advance)
        latencies: dict[str, dict[str, Latency]] = {}
        for (name, kind), latency in measured.items():
            latencies.setdefault(name, {})[kind] = latency
        conditions = {
            "batch_size": self.batch_size,
            "length": length,
            "threads": self.threads,
            "rounds": self.rounds,
            "machine": describe_machine(),
        }
        family = family.with_latencies(conditions, latencies)
        milliseconds = {size.name: size.latency_ms for size in family.sizes} | {"teacher": family.teacher["latency_ms"]}
        write_json(context.folder / "latency.json", {**conditions, "milliseconds": milliseconds})
        write_manifest(family, folder)
        return f"batch {self.batch_size}, {length} tokens, {self.threads} thread(s), median of {self.rounds}"


def _torch_call(model: Any, inputs: Any, threads: int) -> Any:
    """The model as a function without arguments, on as many threads as the sessions get."""
    import torch

    model.eval()
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}

    def call() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.inference_mode():
                model(**tensors)
        finally:
            torch.set_num_threads(before)

    return call
