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
        from compressor.errors import CompressorError
        from compressor.export.family import Family
        from compressor.export.latency import ones
        from compressor.export.manifest import write_manifest
        from compressor.files import write_json

        family = Family.load(context.family_folder)
        longest = family.manifest.max_length
        length = self.length or longest
        if length > longest:
            raise CompressorError(f"stages (benchmark): length {length} is more than data.max_length {longest}")
        inputs = ones(context.data.tokenizer.model_input_names, self.batch_size, length)
        with context.progress.task(self.type, self.rounds) as shown:
            timed = family.timed(
                threads=self.threads,
                batch_size=self.batch_size,
                length=length,
                rounds=self.rounds,
                teacher=_torch_call(context.teacher().model, inputs, self.threads),
                after_round=shown.advance,
            ).manifest
        milliseconds = {size.name: size.latency_ms for size in timed.sizes} | {"teacher": timed.teacher["latency_ms"]}
        write_json(context.folder / "latency.json", {**timed.benchmark, "milliseconds": milliseconds})
        write_manifest(timed, family.folder)
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
