"""The family's figures as a table, a CSV file and a model card. Imports no torch."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

from compressor.export.manifest import Manifest
from compressor.files import write_text

Row = dict[str, Any]


def size_rows(family: Manifest) -> list[Row]:
    """One row a size with plain numbers, the teacher first; None where a figure was not measured."""
    rows = [
        {
            "size": "teacher",
            "parameters": family.teacher.get("parameters"),
            "macs": family.teacher.get("macs"),
            "torch": family.teacher.get("metrics", {}).get("torch"),
            "torch_ms": family.teacher.get("latency_ms", {}).get("torch"),
        }
    ]
    for size in family.sizes:
        row: Row = {"size": size.name, "parameters": size.parameters, "macs": size.macs, **size.metrics}
        for kind in ("fp32", "int8"):
            row[f"{kind}_bytes"] = size.bytes.get(kind)
            row[f"{kind}_ms"] = size.latency_ms.get(kind)
        rows.append(row)
    return [{column: row.get(column) for column in COLUMNS} for row in rows]


COLUMNS = {
    "size": "size",
    "parameters": "parameters",
    "macs": "MACs",
    "torch": "PyTorch",
    "fp32": "fp32",
    "int8": "int8",
    "fp32_bytes": "fp32 size",
    "int8_bytes": "int8 size",
    "torch_ms": "PyTorch ms",
    "fp32_ms": "fp32 ms",
    "int8_ms": "int8 ms",
}


def write_csv(rows: list[Row], path: Path) -> None:
    """The rows as a CSV file; empty where a figure was not measured."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def cells(row: Row) -> list[str]:
    """A row as a person reads it: millions, percent, MiB, milliseconds."""
    formats: dict[str, Callable[[Any], str]] = {
        "size": str,
        "parameters": lambda value: f"{value / 1e6:.2f} M",
        "macs": lambda value: f"{value / 1e6:,.1f} M",
    }
    for kind in ("torch", "fp32", "int8"):
        formats |= {
            kind: lambda value: f"{100 * value:.1f}",
            f"{kind}_bytes": lambda value: f"{value / 2**20:.1f} MiB",
            f"{kind}_ms": lambda value: f"{value:.2f}",
        }
    return ["" if row[column] is None else formats[column](row[column]) for column in COLUMNS]


def caption(family: Manifest) -> str:
    """What the figures of the table are, and under which conditions they were measured."""
    parts = [f"MACs of the encoder for one text of {family.max_length} tokens."]
    if family.evaluation:
        found = family.evaluation
        text = f"{found['metric']} in percent on {found['rows']} validation examples, against {found['against']}"
        if found["baseline"] is not None:
            text += f"; always the most frequent answer scores {100 * found['baseline']:.1f}"
        parts.append(text + ".")
    if family.vocabulary:
        found = family.vocabulary
        parts.append(
            f"Vocabulary: {found['after']:,} of {found['before']:,} tokens; {found['texts_cut_otherwise']:.1%} of the "
            f"validation texts are cut otherwise, {found['unknown_after']:.2%} of their tokens are unknown "
            f"({found['unknown_before']:.2%} before)."
        )
    if family.benchmark:
        found = family.benchmark
        parts.append(
            f"Latency: median of {found['rounds']} rounds, batch {found['batch_size']}, {found['length']} tokens, "
            f"{found['threads']} thread(s), {found['machine']['processor']}."
        )
    return " ".join(parts)


def terminal_table(family: Manifest) -> Table:
    """The table for a terminal."""
    table = Table(caption=caption(family), caption_justify="left")
    for column, title in COLUMNS.items():
        table.add_column(title, justify="left" if column == "size" else "right")
    for row in size_rows(family):
        table.add_row(*cells(row))
    return table


def markdown_table(family: Manifest) -> str:
    """The table in Markdown."""
    lines = ["| " + " | ".join(COLUMNS.values()) + " |", "|---" + "|---:" * (len(COLUMNS) - 1) + "|"]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in size_rows(family)]
    return "\n".join(lines)


def model_card(family: Manifest) -> str:
    """`README.md` of the family, in the hub's format."""
    size = family.smallest
    graph = next(iter(size.graphs.values()))
    shared = family.layout == "shared"
    kept = (
        "All sizes read the same weights, `model.safetensors` in fp32 and `model_int8.safetensors` in int8: keep the "
        "files together, or write one size as a folder that stands alone with `compressor pick`."
        if shared
        else "Every folder holds a size as PyTorch weights and as ONNX files with its tokenizer, and stands alone."
    )
    load = (
        f'compressor.load(".", "{size.name}")'
        if shared
        else (f'transformers.AutoModelForSequenceClassification.from_pretrained("{size.name}")')
    )
    return f"""---
library_name: transformers
pipeline_tag: text-classification
tags: [compressor, dynabert, onnx]
---

# A family of {len(family.sizes)} sizes

One fine-tuned {family.architecture} in {len(family.sizes)} sizes, cut from one super-network that was trained by
distillation. {kept}

{markdown_table(family)}

{caption(family)}

## Use

```python
import onnxruntime, tokenizers, numpy as np
text = tokenizers.Tokenizer.from_file("tokenizer.json").encode("Text to classify.")
session = onnxruntime.InferenceSession("{graph}")
inputs = {{"input_ids": text.ids, "attention_mask": text.attention_mask, "token_type_ids": text.type_ids}}
wanted = [node.name for node in session.get_inputs()]
logits = session.run(None, {{name: np.array([inputs[name]], dtype=np.int64) for name in wanted}})[0]
```

To train a size further: `import compressor`, then `{load}`.
"""
