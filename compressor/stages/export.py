"""Stage `export`: what ships."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from compressor.settings import Count, Fraction
from compressor.stages.base import Stage

if TYPE_CHECKING:
    from compressor.context import Context
    from compressor.export.manifest import Manifest, Size
    from compressor.export.package import Package
    from compressor.supernet.subnetworks import Subnetwork
    from compressor.supernet.supernetwork import SuperNetwork

Precision = Literal["fp32", "int8"]


class Export(Stage):
    """Write the family: an ONNX graph a size and precision, all over the same weights.

    `layout: shared` has one weights file a precision, which every graph points into and which PyTorch reads too
    (`compressor.load`), so that twelve sizes take the disk of one. `standalone` has a folder a size, as `compressor
    pick` writes them.

    Parity is a gate: fp32 logits must equal PyTorch's within `tolerance` for several batch sizes and lengths with
    right, left and holey padding; int8 must agree with them on training texts (`int8_agreement`: same label, or
    correlation for regression) and lose at most `int8_max_drop` of the metric there. Nothing is shipped otherwise.
    """

    type: Literal["export"] = "export"
    layout: Literal["shared", "standalone"] = "shared"
    precision: Annotated[tuple[Precision, ...], Field(min_length=1)] = ("fp32", "int8")
    tolerance: Annotated[float, Field(gt=0)] = 1e-4
    int8_agreement: Fraction = 0.9
    int8_max_drop: Fraction = 0.05
    examples: Count = 256

    reads: ClassVar[frozenset[str]] = frozenset({"family"})
    delivers: ClassVar[tuple[str, ...]] = ("family/family.json",)

    def run(self, context: "Context") -> str:
        from compressor.export.manifest import write_manifest
        from compressor.export.standalone import write_all_standalone
        from compressor.files import replace_folder, temporary_folder

        with temporary_folder(context.family_folder) as folder:
            family = self._family(context, folder)
            write_manifest(family, folder)
            if self.layout == "shared":
                replace_folder(folder, context.family_folder)
            else:
                with temporary_folder(context.family_folder) as alone:
                    write_all_standalone(folder, alone)
                    replace_folder(alone, context.family_folder)
        differences = [size.parity["fp32_difference"] for size in family.sizes if "fp32" in self.precision]
        words = f", logits within {max(differences):.1e} of PyTorch's" if differences else ""
        return f"{len(family.sizes)} sizes{words}"

    def _family(self, context: "Context", folder: Path) -> "Manifest":
        """Write, check and describe all sizes."""
        from compressor import models
        from compressor.export.manifest import Manifest, describe_files
        from compressor.export.package import Package
        from compressor.files import make_readable
        from compressor.machine import int8_overflows
        from compressor.supernet.subnetworks import encoder_macs

        supernet, tokenizer = context.latest(), context.shipped_data.tokenizer
        supernet.train(False)
        sizes = context.shipped_sizes(supernet.dimensions)
        reduced = int8_overflows()
        tokenizer_files = models.save_tokenizer(tokenizer, folder)
        package = Package(supernet, tokenizer.model_input_names, folder, reduced=reduced)
        for precision in ("fp32", "int8"):
            # PyTorch reads the fp32 weights, whatever graphs there are.
            if precision == "fp32" or precision in self.precision:
                package.write_weights(precision)
        entries = []
        with context.progress.task(self.type, len(sizes)) as shown:
            for name, size in sizes.items():
                shown.note(name)
                entries.append(self._size(context, supernet, package, name, size, folder))
                shown.advance()
        make_readable(folder)
        teacher = context.teacher()
        return Manifest(
            architecture=supernet.architecture.model_type,
            config=supernet.model.config.to_dict(),
            task={
                "type": context.recipe.task.type,
                "pair": context.recipe.data.text_pair is not None,
                **context.data.task.config(),
            },
            max_length=context.recipe.data.max_length,
            layout="shared",
            sizes=tuple(entries),
            tokenizer=tokenizer_files,
            files=describe_files(folder),
            int8={"reduced_range": reduced} if "int8" in self.precision else {},
            vocabulary=self._vocabulary(context),
            teacher={
                "parameters": teacher.parameters(teacher.whole),
                "macs": encoder_macs(teacher.whole, teacher.dimensions, context.recipe.data.max_length),
            },
        )

    def _vocabulary(self, context: "Context") -> dict[str, Any]:
        """What pruning wrote of the vocabulary; empty where it was not pruned."""
        from compressor.files import read_json

        pruned = context.checkpoints.get("prune_vocabulary")
        return dict(read_json(pruned / "vocabulary.json")) if pruned else {}

    def _size(
        self,
        context: "Context",
        supernet: "SuperNetwork",
        package: "Package",
        name: str,
        size: "Subnetwork",
        folder: Path,
    ) -> "Size":
        """Write and check the graphs of one size."""
        from compressor.export.manifest import Size
        from compressor.supernet.extraction import extract
        from compressor.supernet.subnetworks import encoder_macs, multipliers

        endings = {"fp32": ".onnx", "int8": "_int8.onnx"}
        graphs: dict[str, str] = {precision: name + endings[precision] for precision in self.precision}
        paths = {precision: folder / graph for precision, graph in graphs.items()}
        sizes = {precision: package.write_graph(precision, size, path) for precision, path in paths.items()}
        width, depth = context.multipliers.get(name) or multipliers(size, supernet.dimensions)
        return Size(
            name=name,
            width=width,
            depth=depth,
            kept_layers=size.kept,
            heads=size.heads,
            neurons=size.neurons,
            parameters=supernet.parameters(size),
            macs=encoder_macs(size, supernet.dimensions, context.recipe.data.max_length),
            graphs=graphs,
            bytes=sizes,
            parity=self._check(context, extract(supernet, size), paths),
        )

    def _check(self, context: "Context", model: Any, graphs: dict[str, Path]) -> dict[str, float]:
        """Hold the graphs of a size against its PyTorch form."""
        from compressor.data import shortest_first
        from compressor.export.parity import check_fp32, check_int8

        parity: dict[str, float] = {}
        data = context.shipped_data
        if "fp32" in graphs:
            longest = context.recipe.data.max_length
            parity["fp32_difference"] = check_fp32(model, graphs["fp32"], self.tolerance, longest)
        if "int8" in graphs:
            rows = data.train.select(range(min(self.examples, len(data.train))))
            limits = (self.int8_agreement, self.int8_max_drop)
            mixed = data.batches(rows.select(range(min(32, len(rows)))), 32)
            rows = shortest_first(rows)
            batches, labels = data.batches(rows, 32), data.labels(rows)
            parity |= check_int8(model, graphs["int8"], data.task, batches, mixed, labels, limits)
        return parity
