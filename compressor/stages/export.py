"""Stage `export`: every size as a folder that ships."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from compressor.settings import Count, Fraction
from compressor.stages.base import Stage

if TYPE_CHECKING:
    from compressor.context import Context
    from compressor.export.graph import Template
    from compressor.export.manifest import Size
    from compressor.supernet.subnetworks import Subnetwork
    from compressor.supernet.supernetwork import SuperNetwork

Precision = Literal["fp32", "int8"]


class Export(Stage):
    """Write each size as `config.json`, `model.safetensors`, tokenizer, `model.onnx` and `model_int8.onnx`.

    Parity is a gate: fp32 logits must equal PyTorch's within `tolerance` for several batch sizes and lengths with
    right, left and holey padding; int8 must agree with them on training texts (`int8_agreement`: same label, or
    correlation for regression) and lose at most `int8_max_drop` of the metric there. Nothing is shipped otherwise.
    """

    type: Literal["export"] = "export"
    precision: Annotated[tuple[Precision, ...], Field(min_length=1)] = ("fp32", "int8")
    tolerance: Annotated[float, Field(gt=0)] = 1e-4
    int8_agreement: Fraction = 0.9
    int8_max_drop: Fraction = 0.05
    examples: Count = 256

    reads: ClassVar[frozenset[str]] = frozenset({"family"})
    delivers: ClassVar[tuple[str, ...]] = ("family/family.json",)

    def run(self, context: "Context") -> str:
        from compressor.export.graph import Template
        from compressor.export.manifest import Manifest, write_manifest
        from compressor.files import replace_folder, temporary_folder
        from compressor.supernet.subnetworks import encoder_macs

        supernet = context.latest()
        supernet.train(False)
        sizes = context.sizes(supernet.dimensions)
        templates: dict[int, Template] = {}
        with temporary_folder(context.family_folder) as folder:
            with context.progress.task(self.type, len(sizes)) as shown:
                entries = []
                for name, size in sizes.items():
                    shown.note(name)
                    entries.append(self._size(context, supernet, name, size, folder / name, templates))
                    shown.advance()
            task, teacher = context.data.task, context.teacher()
            family = Manifest(
                architecture=supernet.architecture.model_type,
                task={"type": context.recipe.task.type, **task.config()},
                max_length=context.recipe.data.max_length,
                sizes=tuple(entries),
                teacher={
                    "parameters": teacher.parameters(teacher.whole),
                    "macs": encoder_macs(teacher.whole, teacher.dimensions, context.recipe.data.max_length),
                },
            )
            write_manifest(family, folder)
            replace_folder(folder, context.family_folder)
        worst = max(entry.parity["fp32_difference"] for entry in entries) if "fp32" in self.precision else None
        return f"{len(entries)} sizes" + (f", logits within {worst:.1e} of PyTorch's" if worst is not None else "")

    def _size(
        self,
        context: "Context",
        supernet: "SuperNetwork",
        name: str,
        size: "Subnetwork",
        folder: Path,
        templates: dict[int, "Template"],
    ) -> "Size":
        """Extract, save, export and check one size."""
        import onnx

        from compressor import models
        from compressor.export.graph import trace
        from compressor.export.manifest import Size, describe_files
        from compressor.supernet.extraction import extract
        from compressor.supernet.subnetworks import encoder_macs

        model = extract(supernet, size)
        models.save(model, context.data.tokenizer, folder)
        layers = len(size.kept)
        if layers not in templates:
            templates[layers] = trace(model, context.data.tokenizer.model_input_names)
        graph = folder / "model.onnx"
        onnx.save(templates[layers].fill(model), graph)
        parity = self._check(context, model, name, graph)
        width, depth = context.multipliers[name]
        return Size(
            name=name,
            width=width,
            depth=depth,
            kept_layers=size.kept,
            heads=size.heads,
            neurons=size.neurons,
            parameters=supernet.parameters(size),
            macs=encoder_macs(size, supernet.dimensions, context.recipe.data.max_length),
            files=describe_files(folder),
            parity=parity,
        )

    def _check(self, context: "Context", model: Any, name: str, graph: Path) -> dict[str, float]:
        """Check the fp32 graph, write and check the int8 one; leave the files that were asked for."""
        from compressor.export.parity import check_fp32, check_int8
        from compressor.export.quantise import quantise

        parity: dict[str, float] = {}
        data = context.data
        if "fp32" in self.precision:
            parity["fp32_difference"] = check_fp32(model, graph, self.tolerance, name, context.recipe.data.max_length)
        if "int8" in self.precision:
            quantised = graph.with_name("model_int8.onnx")
            quantise(graph, quantised)
            rows = data.train.select(range(min(self.examples, len(data.train))))
            limits = (self.int8_agreement, self.int8_max_drop)
            parity |= check_int8(model, quantised, data.task, data.batches(rows, 32), data.labels(rows), limits, name)
        if "fp32" not in self.precision:
            graph.unlink()
        return parity
