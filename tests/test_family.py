"""A family where it serves: answers equal to PyTorch's, shared weights, choices, and the commands around them."""

import gc
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer
from typer.testing import CliRunner

import compressor
from compressor.cli import app
from compressor.errors import CompressorError
from compressor.export import Family
from compressor.export.adaptive import Adaptive, frontier
from compressor.export.choice import Need, choose
from compressor.export.encoding import Encoder
from compressor.export.manifest import Manifest, Size, describe_files, read_manifest
from compressor.export.session import Session
from compressor.export.throughput import ladder
from compressor.generator import statements

Finished = tuple[Path, Path]
TEXTS = [row["sentence"] for row in statements(40, seed=11)]


@pytest.fixture(scope="module")
def folder(finished_run: Finished) -> Path:
    return finished_run[1] / "family"


@pytest.fixture(scope="module")
def family(folder: Path) -> Family:
    return Family.load(folder)


def test_nothing_but_onnxruntime_is_imported(folder: Path) -> None:
    code = (
        "import sys; from compressor.export import Family; "
        f"print(Family.load({str(folder)!r}).open('w0.50-d0.50').predict('the plot is good')[0].label); "
        "print([name for name in ('torch', 'transformers', 'datasets', 'onnx', 'safetensors', 'rich', 'pydantic')"
        " if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    label, imported = result.stdout.splitlines()
    assert label in ("negative", "positive") and imported == "[]"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_answers_are_pytorchs(family: Family, folder: Path, precision: str) -> None:
    """In the order of the texts, whatever batches they went through."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(TEXTS, padding=True, truncation=True, max_length=32, return_tensors="pt")
    for size in family.sizes:
        with torch.no_grad():
            expected = compressor.load(folder, size.name)(**inputs).logits.softmax(-1).numpy()
        found = family.open(size.name, precision).predict(TEXTS, batch_size=7)
        scores = np.array([list(prediction.scores.values()) for prediction in found])
        np.testing.assert_allclose(scores, expected, atol=1e-5 if precision == "fp32" else 0.02)
        for prediction in found:
            assert list(prediction.scores) == ["negative", "positive"] and not prediction.truncated
            assert prediction.score == prediction.scores[str(prediction.label)] == max(prediction.scores.values())


def test_a_single_text_and_a_long_one(family: Family) -> None:
    size = family.open("w0.50-d0.50", "fp32")
    assert size.predict(TEXTS[0]) == size.predict([TEXTS[0]])
    (long,) = size.predict("the plot is good " * 25_000)
    assert long.truncated
    (cut,) = size.predict("the plot is good " * 8)
    assert cut.truncated and cut.scores == long.scores


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["fine", " \t"], "text 2 is empty"),
        (["fine", None], "text 2: None is no text"),
        ([("both", "")], "text 1 is empty"),
        ([3], "text 1: 3 is no text"),
        ([("a", "pair")], "text 1: this family was trained on single texts, not pairs"),
        (("one", "two", "three"), "text 1: 3 texts in a tuple; a pair has two, give others as a list"),
    ],
)
def test_what_is_no_text_is_told(family: Family, texts: Any, message: str) -> None:
    with pytest.raises(CompressorError, match=message):
        family.open("w0.50-d0.50").predict(texts)


def test_pairs_are_encoded_as_transformers_does(folder: Path) -> None:
    pairs = [("the plot is good", "it is"), ("a", "the cast was not very good but the music was " * 4)]
    expected = AutoTokenizer.from_pretrained(folder)(
        *zip(*pairs, strict=True), padding=True, truncation=True, max_length=32
    )
    encoder = Encoder(folder, 32)
    for places, inputs in encoder.batches(encoder.encode(pairs), 2):
        for name, values in inputs.items():
            np.testing.assert_array_equal(values, np.array(expected[name])[places])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_sizes_that_share_memory_answer_as_those_that_do_not(family: Family, folder: Path, precision: str) -> None:
    """To the last bit: the same kernels read the same numbers, wherever these lie."""
    inputs = {"input_ids": np.full((3, 9), 7), "attention_mask": np.ones((3, 9), dtype=np.int64)}
    inputs["token_type_ids"] = np.zeros_like(inputs["input_ids"])
    together = family.open_all(precision)
    assert list(together) == [size.name for size in family.sizes]
    for name, size in together.items():
        graph = folder / size.size.graphs[precision]
        alone = Session(graph, 1, thrifty=True).run(inputs)
        np.testing.assert_array_equal(size._session.run(inputs), alone)
        packed = family.open(name, precision)._session.run(inputs)
        np.testing.assert_array_equal(Session(graph, 1).run(inputs), packed)
        np.testing.assert_allclose(alone, packed, atol=1e-5)


def test_many_threads_may_ask_at_once(family: Family) -> None:
    sizes = family.open_all("fp32")
    expected = {name: size.predict(TEXTS) for name, size in sizes.items()}
    with ThreadPoolExecutor(8) as pool:
        asked = [(name, pool.submit(size.predict, TEXTS)) for _ in range(10) for name, size in sizes.items()]
        assert all(answer.result() == expected[name] for name, answer in asked)


def test_a_size_outlives_its_family(folder: Path) -> None:
    """The mapped weights stay as long as a session reads them; without, this ends the process."""
    for thrifty in (False, True):
        size = Family.load(folder).open("w1.00-d1.00", "fp32", thrifty=thrifty)
        first = size.predict(TEXTS)
        gc.collect()
        assert size.predict(TEXTS) == first


def test_a_changed_file_is_refused_when_a_size_is_opened(run_copy: Finished) -> None:
    folder = run_copy[1] / "family"
    path = folder / "model_int8.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    family = Family.load(folder)
    family.open("w0.50-d0.50", "fp32")
    with pytest.raises(CompressorError, match=r"model_int8\.safetensors is not the file that was exported"):
        family.open("w0.50-d0.50", "int8")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CompressorError, match=r"tokenizer\.json is not the file that was exported"):
        Family.load(folder)


def test_a_processor_that_int8_overflows_on_is_told(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.export.family.int8_overflows", lambda: True)
    family.open("w0.50-d0.50", "fp32")
    if not family.manifest.int8["reduced_range"]:
        with pytest.raises(CompressorError, match="no VNNI"):
            family.open("w0.50-d0.50", "int8")
        assert family.open("w0.50-d0.50").precision == "fp32"
        assert family.pick(latency_ms=1000).precision == "fp32"
    seven_bits = Family(family.folder, replace(family.manifest, int8={"reduced_range": True}))
    seven_bits.open("w0.50-d0.50", "int8")


def test_what_is_not_there_is_told(family: Family, tmp_path: Path) -> None:
    with pytest.raises(CompressorError, match=r"there is no 'w0\.50-d0\.05'; did you mean 'w0\.50"):
        family.open("w0.50-d0.05")
    with pytest.raises(CompressorError, match="precision: the family has no 'int4'; it has fp32, int8"):
        family.open("w0.50-d0.50", "int4")
    with pytest.raises(CompressorError, match=r"family\.json cannot be read"):
        Family.load(tmp_path)
    with pytest.raises(CompressorError, match="length: 33 is more than the 32 that the family reads"):
        family.timed(length=33)


# name: metric and milliseconds in fp32, then in int8; MiB are as many as milliseconds.
MEASURED = {
    "large": ((0.90, 8.0), (0.89, 4.0)),
    "middle": ((0.88, 4.5), (0.88, 2.0)),
    "small": ((0.80, 1.0), (0.79, 0.6)),
}


def measured(**changes: Any) -> Manifest:
    """A family of three sizes with a teacher that scores 0.9."""
    sizes = tuple(
        Size(
            *(name, 1.0, 1.0, (0,), (1,), (1,), 1, int(1000 * values[0][1])),
            graphs={kind: f"{name}-{kind}" for kind in ("fp32", "int8")},
            bytes={kind: int(v[1] * 2**20) for kind, v in zip(("fp32", "int8"), values, strict=True)},
            metrics={kind: v[0] for kind, v in zip(("fp32", "int8"), values, strict=True)},
            latency_ms={kind: v[1] for kind, v in zip(("fp32", "int8"), values, strict=True)},
        )
        for name, values in MEASURED.items()
    )
    options: dict[str, Any] = {
        "config": {},
        "task": {},
        "max_length": 8,
        "layout": "shared",
        "tokenizer": (),
        "files": {},
    }
    options |= {"benchmark": {"threads": 1}, "teacher": {"metrics": {"torch": 0.9}}}
    return Manifest("bert", sizes=sizes, **{**options, **changes})


@pytest.mark.parametrize(
    ("need", "chosen"),
    [
        (Need(latency_ms=100), "large fp32"),
        (Need(latency_ms=4), "large int8"),
        (Need(latency_ms=3.9), "middle int8"),
        (Need(latency_ms=4.5, precision="fp32"), "middle fp32"),
        (Need(metric_drop=0.02), "middle int8"),
        (Need(metric_drop=0.5), "small int8"),
        (Need(metric_drop=0.0), "large fp32"),
        (Need(latency_ms=4, metric_drop=0.02), "large int8"),
        (Need(bytes=2**20), "small fp32"),
        (Need(latency_ms=5, bytes=2 * 2**20, threads=1), "middle int8"),
    ],
)
def test_the_best_size_that_meets_a_need_is_chosen(need: Need, chosen: str) -> None:
    choice = choose(measured(), need)
    assert f"{choice.size.name} {choice.precision}" == chosen
    assert choice.why[0].startswith(f"{chosen}: scores")


def test_a_choice_says_why_not_the_next() -> None:
    assert choose(measured(), Need(latency_ms=4.2, metric_drop=0.05)).why == (
        "large int8: scores 89.00, 1.00 points below the teacher, 4.00 ms, 4.0 MiB",
        "not large fp32, which scores 90.00: it takes 8.00 ms (4.2 are allowed)",
        "not middle int8, which is the next faster one "
        "(scores 88.00, 2.00 points below the teacher, 2.00 ms, 2.0 MiB): it scores no better",
    )


@pytest.mark.parametrize(
    ("changes", "need", "message"),
    [
        ({}, Need(), "say what is needed"),
        ({}, Need(latency_ms=0.5), r"no size meets this: small int8, the nearest, takes 0\.60 ms \(0\.5 are allowed\)"),
        ({}, Need(latency_ms=1, metric_drop=0.01), r"small int8, the nearest, loses 11\.00 points \(1 are allowed\)"),
        ({}, Need(latency_ms=9, threads=4), "the latencies were measured with 1, not with 4"),
        ({"benchmark": {}}, Need(latency_ms=9), "the family was not timed"),
        ({}, Need(latency_ms=9, precision="int4"), "the family has no 'int4'"),
    ],
)
def test_needs_that_cannot_be_met_are_told(changes: dict[str, Any], need: Need, message: str) -> None:
    with pytest.raises(CompressorError, match=message):
        choose(measured(**changes), need)


def test_without_scores_no_drop_can_be_promised() -> None:
    family = measured()
    unscored = replace(family, sizes=tuple(replace(size, metrics={}) for size in family.sizes))
    with pytest.raises(CompressorError, match="was not evaluated"):
        choose(unscored, Need(metric_drop=0.1))
    assert choose(unscored, Need(latency_ms=1.5)).size.name == "small"


def command(*words: str, given: bytes | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words), input=given)
    return result.exit_code, result.output


def test_sizes_print_as_a_table(family: Family) -> None:
    title, *rows = str(family.sizes).splitlines()
    assert title.split() == [
        "size",
        *(word for kind in ("fp32", "int8") for what in ("score", "ms", "MiB") for word in (kind, what)),
    ]
    assert [row.split()[0] for row in rows] == [size.name for size in family.sizes]
    assert float(rows[-1].split()[-2]) == round(family.sizes[-1].latency_ms["int8"], 2)


def test_bench_shows_every_size(folder: Path) -> None:
    code, output = command("bench", str(folder), "--rounds", "2", "--length", "8")
    assert code == 0 and "2 rounds, batch 1, 8 tokens" in " ".join(output.split())
    assert all(size.name in output for size in read_manifest(folder).sizes)


def test_bench_shows_what_a_million_texts_cost(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("\n".join(TEXTS))
    words = ["bench", str(folder), "--throughput", "--file", str(tmp_path / "texts"), "--price-per-hour", "0.68"]
    code, output = command(*words)
    lines = [line for line in output.splitlines() if "w1.00-d1.00" in line or "w0.50-d0.50" in line]
    assert code == 0 and "PyTorch, padded to 32" in lines[0] and "1.0x" in lines[0] and len(lines) >= 6
    code, output = command("bench", str(folder), "--throughput")
    assert code == 2 and "--file: throughput depends on the lengths of texts" in output


def test_a_ladder_counts_texts_and_money(family: Family) -> None:
    rungs = ladder(family, TEXTS, price_per_hour=3.6)
    assert rungs[0].metric == family.sizes[0].metrics["torch"] and rungs[-1].metric == family.sizes[-1].metrics["int8"]
    for rung in rungs:
        assert rung.cost == pytest.approx(1e3 / rung.texts_per_second)


def test_several_workers_answer_as_one(family: Family) -> None:
    size = family.open("w1.00-d1.00", "fp32")
    assert size.predict(TEXTS, 4, workers=3) == size.predict(TEXTS, 4)
    with pytest.raises(CompressorError, match="text 2 is empty"):
        size.predict(["a", ""], workers=3)


def test_pick_writes_what_it_chose(folder: Path, tmp_path: Path) -> None:
    code, output = command("pick", str(folder), "--latency", "1s", "--rounds", "2", "-o", str(tmp_path / "one"))
    assert code == 0 and "points" in output and (tmp_path / "one" / "model_int8.onnx").is_file()
    code, output = command("pick", str(folder), "--max-drop", "50", "-o", str(tmp_path / "one"))
    assert code == 2 and "is there already" in output
    code, output = command("pick", str(folder), "--max-size", "1KB")
    assert code == 2 and "no size meets this" in output
    for wrong in ("5", "ms", "1.2.3ms", "5km"):
        code, output = command("pick", str(folder), "--latency", wrong)
        assert code == 2 and f"--latency: '{wrong}' is no number with a unit (ms, s, us), such as 5ms" in output


LIMITED = """
import resource, sys
from compressor.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), -1))
main()
"""


def limited(size: int, *arguments: object) -> str:
    """What a command says that cannot write files larger than so many bytes: as on a full disk, but anywhere."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(size), *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


def test_a_full_disk_leaves_no_half_size(folder: Path, tmp_path: Path) -> None:
    said = limited(50_000, "pick", folder, "--max-drop", 100, "--output", tmp_path / "one")
    assert "size w0.50-d0.50 cannot be written in" in said and "MiB are free" in said
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_half_family(run_copy: Finished) -> None:
    recipe, run = run_copy
    kept = describe_files(run / "family")
    words = ("run", recipe, "stages.export.tolerance=0.001", "--output", run)
    assert limited(50_000, *words).count("cannot be written") == 1
    assert describe_files(run / "family") == kept
    assert not list(run.glob(".family*")) and not list((run / "stages").glob(".*"))


def test_predict_answers_texts_files_and_pipes(folder: Path, tmp_path: Path) -> None:
    code, output = command("predict", str(folder), "--size", "w0.50-d0.50", *TEXTS[:3])
    lines = output.strip().splitlines()
    assert code == 0 and len(lines) == 3 and all(line.split("\t")[0] in ("negative", "positive") for line in lines)
    (tmp_path / "texts").write_bytes("\r\n".join(TEXTS[:3]).encode("utf-8-sig"))
    assert command("predict", str(folder), "--size", "w0.50-d0.50", "--file", str(tmp_path / "texts")) == (0, output)
    assert command("predict", str(folder), "--size", "w0.50-d0.50", given="\n".join(TEXTS[:3]).encode()) == (0, output)
    code, output = command("predict", str(folder), "--json", TEXTS[0])
    assert set(json.loads(output)) == {"label", "score", "scores", "truncated"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"good\n\xff\xfe\n", "line 2 is not UTF-8"),
        (b"", "there is no text in it"),
        (b"good\n\nbad\n", "text 2 is empty"),
    ],
)
def test_predict_tells_what_it_cannot_read(folder: Path, tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "texts").write_bytes(data)
    code, output = command("predict", str(folder), "--file", str(tmp_path / "texts"))
    assert code == 2 and message in output
    code, output = command("predict", str(folder), "text", "--file", str(tmp_path / "texts"))
    assert code == 2 and "not both" in output


class Slow:
    """Stands for an open size: takes so long, and answers with its own name."""

    def __init__(self, name: str, seconds: float, encoder: Encoder) -> None:
        self.name, self.seconds, self.encoder = name, seconds, encoder

    def run_ones(self, length: int) -> None:
        time.sleep(self.seconds)

    def answer(self, encodings: list[Any]) -> list[str]:
        if len(encodings[0].ids) == 32:
            raise ValueError("broken")
        time.sleep(self.seconds)
        return [self.name for _ in encodings]


@pytest.fixture
def service(folder: Path) -> Iterator[Adaptive]:
    """Three sizes, of 20, 4 and 1 milliseconds; 60 are allowed."""
    encoder = Encoder(folder, 32)
    sizes: Any = {name: Slow(name, s, encoder) for name, s in (("large", 0.02), ("middle", 0.004), ("small", 0.001))}
    with Adaptive(sizes, latency_ms=60) as service:
        yield service


@pytest.mark.parametrize(
    ("waited", "waiting", "pace", "chosen"),
    [
        (0.0, 0, 1.0, "large"),
        (0.0, 1, 1.0, "large"),
        (0.0, 2, 1.0, "middle"),  # 3 x 20 ms are more than 48, four fifths of what is allowed
        (0.0, 12, 1.0, "small"),
        (0.03, 0, 1.0, "middle"),
        (0.0, 0, 3.0, "middle"),  # a machine that has become slower
        (0.1, 0, 1.0, "small"),  # too late for all
    ],
)
def test_the_largest_size_that_is_in_time_is_chosen(
    service: Adaptive, waited: float, waiting: int, pace: float, chosen: str
) -> None:
    seconds = {"large": 0.02, "middle": 0.004, "small": 0.001}
    service._curves = {name: SimpleNamespace(seconds=lambda _, s=s: s) for name, s in seconds.items()}  # type: ignore[misc]
    service._pace = pace
    assert service._choose(10, waited, waiting) == chosen


def test_a_machine_that_becomes_slower_is_noticed(service: Adaptive) -> None:
    assert service.predict("the plot is good")[0].size == "large"
    for size in service._sizes.values():
        size.seconds *= 3  # type: ignore[attr-defined]
    found = [service.predict("the plot is good")[0].size for _ in range(30)]
    assert service._pace > 2 and found[-1] != "large"


def test_all_that_is_asked_at_once_is_answered(service: Adaptive) -> None:
    answers = service.predict(["the plot is good"] * 40)
    # Forty of the largest would take 800 ms: many texts are left to smaller ones.
    assert len(answers) == 40 and any(answer.size != "large" for answer in answers)


def test_what_is_asked_is_answered_whatever_happens(service: Adaptive) -> None:
    broken, fine = service.submit("good " * 40), service.submit("the plot is good")
    with pytest.raises(ValueError, match="broken"):
        broken.result()
    assert str(fine.result().prediction) == fine.result().size and fine.result().milliseconds > 0
    with pytest.raises(CompressorError, match="text 1 is empty"):
        service.submit(" ")
    last = service.submit("the plot is good")
    service.close()
    assert last.done()
    with pytest.raises(CompressorError, match="closed"):
        service.submit("the plot is good")


def test_a_latency_that_no_size_meets_is_told(family: Family) -> None:
    with pytest.raises(CompressorError, match=r"0\.001 are allowed, and the fastest size takes .* here for 32 tokens"):
        family.adaptive(latency_ms=0.001)


def test_an_adaptive_family_answers_as_its_sizes(family: Family) -> None:
    with family.adaptive(latency_ms=1000, precision="fp32", sizes=["w1.00-d1.00"], workers=2) as service:
        answers = service.predict(TEXTS)
    size = family.open("w1.00-d1.00", "fp32")
    assert [answer.prediction for answer in answers] == [size.predict(text)[0] for text in TEXTS]
    assert {answer.size for answer in answers} == {"w1.00-d1.00"}


def test_sizes_that_another_beats_do_not_answer() -> None:
    entries = dict.fromkeys("a", (0.9, 100)) | {"b": (0.8, 90), "c": (0.85, 50), "d": (0.7, 60), "e": (0.6, 10)}
    sizes: Any = [
        SimpleNamespace(name=name, metrics={"int8": metric}, macs=macs) for name, (metric, macs) in entries.items()
    ]
    assert frontier(sizes, "int8") == ["a", "c", "e"]
