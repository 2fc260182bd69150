"""The search: its space, its tuners, its scores and latencies, and the stage from end to end."""

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.engine import run
from compressor.errors import CompressorError
from compressor.export.manifest import read_manifest
from compressor.files import read_json
from compressor.progress import Progress
from compressor.recipe import check_recipe, load_recipe, read_yaml, with_stage
from compressor.search.latency import LatencyModel, fit, sample
from compressor.search.loop import Evaluations, finalists, winners
from compressor.search.scoring import Score, Scorer
from compressor.search.space import Candidate, Space
from compressor.search.tuners import Tuner, tuner_of
from compressor.supernet.architectures import Dimensions
from compressor.supernet.subnetworks import Subnetwork, multipliers, subnetwork, whole
from compressor.training import predict
from compressor.training.prediction import one_size
from tests.test_family import command

DIMENSIONS = Dimensions(layers=6, heads=12, neurons=1536, hidden=384)
SPACE = Space(DIMENSIONS)
LATENCY = LatencyModel(base=0.3, layer=0.3, head=0.1, neuron=0.001, error=0.0, worst=0.0)
Finished = tuple[Path, Path]


def suggestions() -> st.SearchStrategy[dict[str, float]]:
    return st.integers(0, 2**32).map(lambda seed: tuner_of("random", SPACE.parameters(), seed).suggest()[1])


# --- the space -----------------------------------------------------------------------------------------------------


@given(suggestion=suggestions(), budget=st.floats(0.75, 20.0))
def test_a_suggestion_fills_its_budget_and_no_more(suggestion: dict[str, float], budget: float) -> None:
    size = SPACE.decode(suggestion, LATENCY.milliseconds, budget)
    assert size is not None
    size.check(DIMENSIONS)
    assert LATENCY.milliseconds(size) <= budget
    full = all(heads == DIMENSIONS.heads for heads in size.heads) and max(size.neurons) == DIMENSIONS.neurons
    # A head of each layer and a step of its neurons are the least that can be added to all at once.
    step = len(size.kept) * (LATENCY.head + 48 * LATENCY.neuron)
    assert full or LATENCY.milliseconds(size) > budget - step - 1e-6


@given(suggestion=suggestions())
def test_proportions_are_kept_where_there_is_room(suggestion: dict[str, float]) -> None:
    size = SPACE.decode(suggestion, LATENCY.milliseconds, 4.0)
    assert size is not None
    for counts, name in ((size.heads, "heads"), (size.neurons, "neurons")):
        shares = [suggestion[f"{name}_{layer}"] for layer in size.kept]
        order = sorted(range(len(shares)), key=lambda place: shares[place])
        assert [counts[place] for place in order] == sorted(counts)


def test_equal_shares_are_the_grid() -> None:
    for width, depth in ((1.0, 1.0), (0.5, 1.0), (0.75, 0.5), (0.25, 0.75)):
        size = subnetwork(DIMENSIONS, width, depth)
        assert SPACE.decode(SPACE.even(size.kept), LATENCY.milliseconds, LATENCY.milliseconds(size)) == size
        assert multipliers(size, DIMENSIONS) == pytest.approx((width, len(size.kept) / 6))


def test_what_no_budget_fits_is_told() -> None:
    assert SPACE.decode(SPACE.even((0, 1)), LATENCY.milliseconds, 0.5) is None
    single = SPACE.decode(SPACE.even((0, 1, 2, 3, 4, 5)), LATENCY.milliseconds, 0.75)
    assert single is not None and len(single.kept) == 1
    nothing = {**SPACE.even(()), "keep_5": 0}
    kept = SPACE.decode(nothing, LATENCY.milliseconds, 9.0)
    assert kept is not None and kept.kept == (5,)


# --- the tuners ----------------------------------------------------------------------------------------------------


def play(tuner: Tuner, rounds: int, together: int = 3) -> list[dict[str, float]]:
    """Suggestions of a tuner that is told, in the reverse order, that many heads are good."""
    found = []
    for _ in range(rounds):
        asked = [tuner.suggest() for _ in range(together)]
        for number, suggestion in reversed(asked):
            tuner.tell(number, sum(value for name, value in suggestion.items() if name.startswith("heads")))
        found += [suggestion for _, suggestion in asked]
    return found


@pytest.mark.parametrize("algorithm", ["tpe", "evolution", "random"])
def test_the_same_seed_suggests_the_same(algorithm: Any) -> None:
    random.seed(1)
    np.random.seed(1)
    outside = (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]
    first = play(tuner_of(algorithm, SPACE.parameters(), 2**62 + 5), 12)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == outside  # type: ignore[index]
    random.seed(2)
    assert play(tuner_of(algorithm, SPACE.parameters(), 2**62 + 5), 12) == first
    assert play(tuner_of(algorithm, SPACE.parameters(), 6), 12) != first
    assert json.loads(json.dumps(first)) == first
    for suggestion in first:
        assert suggestion.keys() == SPACE.parameters().keys()
        assert all(1 <= value <= 12 for name, value in suggestion.items() if not name.startswith("keep"))


@pytest.mark.parametrize(("algorithm", "rounds"), [("tpe", 40), ("evolution", 80)])
def test_nnis_tuners_learn_what_chance_does_not(algorithm: Any, rounds: int) -> None:
    def late(name: Any) -> float:
        found = play(tuner_of(name, SPACE.parameters(), 0), rounds)[-30:]
        return float(np.mean([sum(v for k, v in one.items() if k.startswith("heads")) for one in found]))

    assert late(algorithm) > late("random") + 3


def test_what_is_known_before_is_learnt() -> None:
    tuner = tuner_of("tpe", SPACE.parameters(), 0)
    for _ in range(30):
        tuner.learn(SPACE.even((0, 1, 2, 3, 4, 5)), 1.0)
        tuner.learn({name: 4 if "keep" not in name else 0 for name in SPACE.parameters()}, 0.0)
    found = [tuner.suggest()[1]["heads_0"] for _ in range(20)]
    assert float(np.mean(found)) > 8.5


def test_without_nni_chance_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nni.algorithms.hpo.tpe_tuner", None)
    with pytest.raises(CompressorError, match=r"tpe is NNI's, and nni cannot be imported here.*use algorithm random"):
        tuner_of("tpe", {}, 0)
    assert tuner_of("random", SPACE.parameters(), 0).suggest()[1]


# --- latencies -----------------------------------------------------------------------------------------------------


def test_a_latency_model_finds_what_made_the_times() -> None:
    sizes = sample(DIMENSIONS, seed=3)
    assert len(set(sizes)) == len(sizes)
    for size in sizes:
        size.check(DIMENSIONS)
    found = fit({size: LATENCY.milliseconds(size) for size in sizes})
    assert found.error < 1e-6 and found.worst < 1e-6
    assert found.milliseconds(whole(DIMENSIONS)) == pytest.approx(LATENCY.milliseconds(whole(DIMENSIONS)))


def test_the_error_is_of_sizes_that_were_left_out() -> None:
    noise = random.Random(0)
    measured = {size: LATENCY.milliseconds(size) * noise.uniform(0.9, 1.1) for size in sample(DIMENSIONS, seed=3)}
    found = fit(measured)
    assert 0.02 < found.error < 0.07 < found.worst < 0.2
    with pytest.raises(ValueError, match="5 sub-networks are too few"):
        fit(dict(list(measured.items())[:5]))


# --- scores and winners --------------------------------------------------------------------------------------------


def candidate(milliseconds: float, metric: float, heads: int = 1, loss: float = 0.5) -> Candidate:
    return Candidate(Subnetwork((0,), (heads,), (1,)), milliseconds, metric, loss, 10)


def test_finalists_and_winners_are_in_time_and_better_than_the_grid() -> None:
    tried = [candidate(1, 0.5, 1), candidate(2, 0.8, 2), candidate(2, 0.8, 3, loss=0.4), candidate(4, 0.7, 4)]
    assert finalists(tried, [1, 2], 1) == [tried[0].size, tried[2].size]
    assert finalists(tried, [4], 2) == [tried[2].size, tried[1].size]
    grid = [candidate(1, 0.6, 10), candidate(2, 0.7, 11), candidate(4, 0.9, 12)]
    assert winners(tried, grid, [1, 2, 4]) == [tried[2]]
    assert winners(tried, [], [1, 4]) == [tried[2], tried[0]]


class CountingScorer:
    rows = 10

    def __init__(self) -> None:
        self.asked: list[Subnetwork] = []

    def score(self, sizes: dict[str, Subnetwork]) -> dict[str, Score]:
        self.asked += sizes.values()
        return {name: Score(sum(size.heads) / 100, 1.0) for name, size in sizes.items()}


def test_what_was_logged_is_not_scored_again(tmp_path: Path) -> None:
    log, scorer = tmp_path / "log.jsonl", CountingScorer()
    one, two, three = (Subnetwork((0, 1), (heads, 1), (5, 5)) for heads in (1, 2, 3))
    first = Evaluations(LATENCY, scorer, log).of([one, two, one])  # type: ignore[arg-type]
    assert scorer.asked == [one, two]
    # As a power cut leaves it.
    log.write_text(log.read_text() + '{"kept": [0,')
    again = Evaluations(LATENCY, scorer, log)  # type: ignore[arg-type]
    assert again.of([two, one]) == first and again.known == list(first.values())
    again.of([three, two])
    assert scorer.asked == [one, two, three]
    assert [json.loads(line)["heads"][0] for line in log.read_text().splitlines()] == [1, 2, 3]


# --- the stage -----------------------------------------------------------------------------------------------------


def search_recipe(finished: Finished, folder: Path, **settings: Any) -> dict[str, Any]:
    """The finished run's recipe with a search; a fresh run of it takes over what is trained."""
    rows = finished[0].with_name("dev.tsv").read_text()
    (folder / "rows.tsv").write_text(rows)
    value = read_yaml((finished[1] / "recipe.yaml").read_text(), "r")
    stage = {"type": "search", "rows": str(folder / "rows.tsv"), "evaluations": 24, "examples": 30, "precision": "fp32"}
    return with_stage(value, stage | settings, before="export")


def test_a_search_ships_what_beats_the_grid(run_copy: Finished, tmp_path: Path, quiet: Progress) -> None:
    recipe, output = check_recipe(search_recipe(run_copy, tmp_path), "r"), run_copy[1]
    run(recipe, output, quiet)
    folder = output / "stages" / "06-search"
    found = read_json(folder / "sizes.json")
    family = read_manifest(output / "family")
    grid = [size.name for size in family.sizes if not size.name.startswith("search")]
    assert list(found["grid"]) == grid
    assert [size.name for size in family.sizes[len(grid) :]] == list(found["sizes"])
    for size in family.sizes[len(grid) :]:
        chosen = found["sizes"][size.name]
        assert list(size.heads) == chosen["heads"] and list(size.kept_layers) == chosen["kept"]
        assert size.metrics["fp32"] > 0 and size.latency_ms["fp32"] > 0
    assert family.smallest.name == grid[-1]
    lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert all(line["rows"] == 30 for line in lines) and all(one["rows"] == 60 for one in found["grid"].values())
    assert "<svg" in (folder / "front.svg").read_text()


def test_a_search_that_was_cut_off_goes_on(run_copy: Finished, tmp_path: Path, quiet: Progress) -> None:
    recipe = check_recipe(search_recipe(run_copy, tmp_path, algorithm="tpe"), "r")
    with pytest.MonkeyPatch.context() as patch:
        left, score = iter(range(3)), Scorer.score

        def breaking(self: Scorer, sizes: Any) -> Any:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return score(self, sizes)

        patch.setattr(Scorer, "score", breaking)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, run_copy[1], quiet)
    partial = run_copy[1] / "stages" / "06-search.partial"
    begun = (partial / "evaluations.jsonl").read_text()
    latency = read_json(partial / "latency.json")
    assert begun and not (run_copy[1] / "stages" / "06-search").exists()

    def stop(*_: object) -> str:
        raise RuntimeError("the search is done")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="the search is done"):
        patch.setattr("compressor.stages.export.Export.run", stop)
        run(recipe, run_copy[1], quiet)
    whole_log = (run_copy[1] / "stages" / "06-search" / "evaluations.jsonl").read_text()
    assert whole_log.startswith(begun) and len(whole_log) > len(begun)
    assert read_json(run_copy[1] / "stages" / "06-search" / "latency.json") == latency


def test_scores_are_those_of_each_sub_network_alone(supernet: Any) -> None:
    from compressor.tasks import Classification
    from tests.conftest import tiny_inputs

    task, labels = Classification(("a", "b")), np.array([0, 1, 1])
    batch = tiny_inputs()
    sizes = {
        "1": supernet.whole,
        "2": Subnetwork((0, 1, 3), (4, 1, 2), (64, 10, 20)),
        "3": Subnetwork((1,), (2,), (5,)),
    }
    scores = Scorer(supernet, [batch], task, labels).score(sizes)  # type: ignore[arg-type]
    for name, size in sizes.items():
        logits = predict(one_size(supernet, size), [batch])  # type: ignore[arg-type]
        assert scores[name].metric == task.score(logits, labels)
        exact = -np.log(np.exp(logits)[range(3), labels] / np.exp(logits).sum(1)).mean()
        assert scores[name].loss == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": None}, "there are no rows to choose by that no stage trains on: hold some out with data.selection"),
        ({"timed_length": 99}, "timed_length 99 is more than data.max_length"),
        ({"rows": "no-such.tsv"}, "no-such.tsv"),
        ({"algorithm": "tpr"}, "algorithm"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    run_copy: Finished, tmp_path: Path, quiet: Progress, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(CompressorError, match=message):
        run(check_recipe(search_recipe(run_copy, tmp_path, **settings), "r"), run_copy[1], quiet)


def test_the_command_adds_a_search_to_a_run(run_copy: Finished, tmp_path: Path) -> None:
    search_recipe(run_copy, tmp_path)
    words = ("--rows", str(tmp_path / "rows.tsv"), "--evaluations", "6", "--algorithm", "random", "--precision", "fp32")
    code, output = command("search", str(run_copy[1]), *words)
    assert code == 0 and "06-search: " in output
    recipe = load_recipe(str(run_copy[1] / "recipe.yaml"))
    assert [stage.type for stage in recipe.stages].count("search") == 1
    code, output = command("search", str(tmp_path))
    assert code == 2 and "there is no run, for it holds no recipe.yaml" in output
