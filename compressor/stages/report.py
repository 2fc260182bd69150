"""Stage `report`: the family's figures for people."""

from typing import TYPE_CHECKING, ClassVar, Literal

from compressor.stages.base import Stage

if TYPE_CHECKING:
    from compressor.context import Context


class Report(Stage):
    """Write `sizes.csv` and a model card (`README.md`) into the family, from what was evaluated and measured."""

    type: Literal["report"] = "report"

    needs: ClassVar[tuple[str, ...]] = ("export",)
    delivers: ClassVar[tuple[str, ...]] = ("family/sizes.csv", "family/README.md")

    def run(self, context: "Context") -> str:
        from compressor.export.manifest import read_manifest
        from compressor.export.report import model_card, size_rows, write_csv
        from compressor.files import write_text

        folder = context.family_folder
        family = read_manifest(folder)
        write_csv(size_rows(family), folder / "sizes.csv")
        write_text(folder / "README.md", model_card(family))
        return "family/sizes.csv, family/README.md"
