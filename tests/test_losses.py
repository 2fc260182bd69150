"""The relations against the authors' values, difference vectors, gradients and the invariances of the paper."""

import doctest
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException

from compressor import losses
from compressor.errors import CompressorError
from compressor.losses import relations
from compressor.losses.geometry import Geometry
from compressor.losses.matching import Matching, check_matching, match
from compressor.settings import ObjectiveSettings, StateLists

RELATIONS: dict[str, Callable[..., Tensor]] = {
    "word_pair": losses.word_pair,
    "word_distance": losses.word_distance,
    "word_angle": losses.word_angle,
    "word_angle windowed": lambda *args, **options: losses.word_angle(*args, window=5, **options),
    "layer_pair": losses.layer_pair,
    "layer_distance": losses.layer_distance,
    "layer_angle": losses.layer_angle,
}
ANGLES = ("word_angle", "word_angle windowed", "layer_angle")
EVERY = pytest.mark.parametrize("name", RELATIONS)
NORMALIZATIONS = pytest.mark.parametrize("normalization", ["valid", "per_row", "reference"])

GOLDEN_FORMS: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "word_pair cosine KL": (losses.word_pair, {}),
    "word_pair squared-L2 mean-normalised smooth-L1": (losses.word_distance, {}),
    "word_pair squared-L2 mean-normalised L2": (losses.word_distance, {"penalty": "l2"}),
    "word_angle full L2": (losses.word_angle, {}),
    "word_angle full smooth-L1": (losses.word_angle, {"penalty": "smooth_l1"}),
    "word_angle window 5 L2 (clamped borders, centre mask)": (losses.word_angle, {"window": 5}),
    "layer_pair cosine KL": (losses.layer_pair, {}),
    "layer_pair squared-L2 mean-normalised smooth-L1": (losses.layer_distance, {}),
    "layer_angle L2": (losses.layer_angle, {}),
}


def states(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]])


def test_every_golden_value_and_gradient(golden: ModuleType) -> None:
    assert set(GOLDEN_FORMS) == set(golden.GOLDEN)
    teacher, mask = torch.tensor(golden.TEACHER, dtype=torch.float64), torch.tensor(golden.MASK)
    for name, (loss, options) in GOLDEN_FORMS.items():
        student = torch.tensor(golden.STUDENT, dtype=torch.float64, requires_grad=True)
        value = loss(teacher, student, mask, normalization="reference", **options)
        value.backward()
        assert student.grad is not None
        expected_value, expected_norm = golden.GOLDEN[name]
        assert value.item() == pytest.approx(expected_value, abs=1e-9), name
        assert student.grad.norm().item() == pytest.approx(expected_norm, abs=1e-8), name


def test_golden_logit_losses(golden: ModuleType) -> None:
    student = torch.tensor([[0.2, -1, 0.5], [1, 0, -0.3]])
    teacher = torch.tensor([[0.1, -0.5, 0.9], [2, 0.3, -1]])
    assert losses.soft_cross_entropy(teacher, student, temperature=2).item() == pytest.approx(
        golden.LOGITS["soft_cross_entropy"], abs=1e-6
    )
    value = losses.regression(teacher[:, :1], student[:, :1], temperature=2)
    assert value.item() == pytest.approx(golden.LOGITS["regression"], abs=1e-6)


def cosines_by_differences(points: Tensor) -> Tensor:
    """[p, d] -> [p, p, p], from the difference vectors themselves."""
    sides = points[None, :, :] - points[:, None, :]
    length = sides.norm(dim=-1)
    return torch.einsum("ijd,ikd->ijk", sides, sides) / (length[:, :, None] * length[:, None, :])


def test_valid_angles_are_the_mean_over_triples_of_different_words() -> None:
    teacher, student = states(0, 2, 3, 7, 6), states(1, 2, 3, 7, 4)
    errors: dict[str, list[Tensor]] = {"full": [], "window": []}
    for b, words in enumerate((7, 5)):
        for layer in range(3):
            error = (
                cosines_by_differences(student[b, layer, :words]) - cosines_by_differences(teacher[b, layer, :words])
            ).square()
            for i in range(words):
                for j in range(words):
                    for k in range(words):
                        if len({i, j, k}) == 3:
                            errors["full"].append(error[i, j, k])
                            if max(abs(i - j), abs(i - k)) <= 2:
                                errors["window"].append(error[i, j, k])
    full = torch.stack(errors["full"]).mean()
    window = torch.stack(errors["window"]).mean()
    torch.testing.assert_close(losses.word_angle(teacher, student, MASK), full)
    torch.testing.assert_close(losses.word_angle(teacher, student, MASK, window=5), window)
    # A window over everything is no window.
    torch.testing.assert_close(losses.word_angle(teacher, student, MASK, window=13), full)


def test_valid_pairs_are_the_mean_over_ordered_pairs() -> None:
    teacher, student = states(0, 2, 3, 7, 6), states(1, 2, 3, 7, 4)
    total, pairs = torch.zeros((), dtype=torch.float64), 0
    for b, words in enumerate((7, 5)):
        for layer in range(3):
            for i in range(words):
                others = [j for j in range(words) if j != i]
                p, q = (
                    torch.cosine_similarity(x[b, layer, i], x[b, layer, others], dim=-1).log_softmax(-1)
                    for x in (teacher, student)
                )
                total, pairs = total + (p.exp() * (p - q)).sum(), pairs + len(others)
    torch.testing.assert_close(losses.word_pair(teacher, student, MASK), total / pairs)


def angles_by_differences(teacher: Tensor, student: Tensor, mask: Tensor, how: str, window: int) -> Tensor:
    """The windowed word angle as the authors write it, from gathered difference vectors; [B, L, n, d]."""
    points, reach = student.shape[2], window // 2
    places = torch.arange(points)[:, None] + torch.arange(-reach, reach + 1)
    near, words = places.clamp(0, points - 1), mask.bool()
    cosines, apart = [], []
    for states in (teacher, student):
        sides = states[:, :, near] - states[:, :, :, None]
        length = sides.norm(dim=-1)
        directions = torch.where(length[..., None] > 0, sides / length[..., None].clamp(min=1e-12), 0)
        cosines.append(directions @ directions.mT)
        apart.append(length > 0)
    error = (cosines[1] - cosines[0]).square()
    if how == "reference":
        return (error * words[:, None, :, None, None]).sum() / (words.sum() * window**2 * student.shape[1])
    taken = ((places >= 0) & (places < points)) & words[:, :, None] & words[:, near]
    taken = taken[:, None] & apart[0] & apart[1]
    triples = taken[..., :, None] & taken[..., None, :] & ~torch.eye(window, dtype=torch.bool)
    if how == "valid":
        return (error * triples).sum() / triples.sum()
    rows = triples.sum((-2, -1))
    return ((error * triples).sum((-2, -1)) / rows.clamp(min=1)).sum() / (rows > 0).sum()


@NORMALIZATIONS
@pytest.mark.parametrize(("words", "window"), [(90, 21), (45, 5), (20, 21), (7, 21)])
def test_windows_in_blocks_equal_gathered_differences(normalization: str, words: int, window: int) -> None:
    """Windows much shorter than the sentence go through overlapping blocks, longer ones do not."""
    teacher, student = states(0, 2, 2, words, 5), states(1, 2, 2, words, 4)
    mask = torch.ones(2, words)
    mask[1, words - words // 3 :] = 0
    found, expected = student.clone().requires_grad_(), student.clone().requires_grad_()
    value = losses.word_angle(teacher, found, mask, window=window, normalization=normalization)
    by_hand = angles_by_differences(teacher, expected, mask, normalization, window)
    torch.testing.assert_close(value, by_hand)
    value.backward()
    by_hand.backward()
    torch.testing.assert_close(found.grad, expected.grad)


def test_rows_count_once_whatever_the_length_of_their_sentence() -> None:
    teacher, student = states(0, 2, 3, 7, 6), states(1, 2, 3, 7, 4)
    rows: dict[str, list[Tensor]] = {"pair": [], "angle": []}
    for b, words in enumerate((7, 5)):
        for layer in range(3):
            t, s = teacher[b, layer, :words], student[b, layer, :words]
            error = (cosines_by_differences(s) - cosines_by_differences(t)).square()
            for i in range(words):
                others = [j for j in range(words) if j != i]
                p, q = (torch.cosine_similarity(x[i], x[others], dim=-1).log_softmax(-1) for x in (t, s))
                rows["pair"].append((p.exp() * (p - q)).sum())
                rows["angle"].append(torch.stack([error[i, j, k] for j in others for k in others if j != k]).mean())
    for loss, kind in ((losses.word_pair, "pair"), (losses.word_angle, "angle")):
        torch.testing.assert_close(
            loss(teacher, student, MASK, normalization="per_row"), torch.stack(rows[kind]).mean()
        )


def test_a_temperature_divides_the_cosines() -> None:
    teacher, student = states(0, 1, 1, 5, 6), states(1, 1, 1, 5, 4)
    others = ~torch.eye(5, dtype=torch.bool)
    p, q = (
        (torch.cosine_similarity(x[0, 0, :, None], x[0, 0], dim=-1)[others].view(5, 4) / 0.1).log_softmax(-1)
        for x in (teacher, student)
    )
    expected = (p.exp() * (p - q)).sum() / 20
    torch.testing.assert_close(losses.word_pair(teacher, student, torch.ones(1, 5), temperature=0.1), expected)


@pytest.mark.parametrize("penalty", ["l1", "smooth_l1"])
def test_other_penalties_are_streamed_over_vertices(penalty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = states(0, 2, 3, 7, 6), states(1, 2, 3, 7, 4)
    whole, parts = student.clone().requires_grad_(), student.clone().requires_grad_()
    expected = losses.word_angle(teacher, whole, MASK, penalty=penalty)
    expected.backward()
    monkeypatch.setattr("compressor.losses.angles._CUBE_AT_ONCE", {"cpu": 1})
    value = losses.word_angle(teacher, parts, MASK, penalty=penalty)
    value.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(parts.grad, whole.grad)


@EVERY
def test_a_selection_of_states_has_the_relations_of_those_states(name: str) -> None:
    """A teacher's geometry is computed once, and sub-networks of each depth take their part of it."""
    teacher, student = states(0, 2, 5, 7, 6), states(1, 2, 3, 7, 4)
    chosen = Geometry(teacher, MASK).select((0, 2, 4))
    own = Geometry(student, MASK)
    kind = "words" if name.startswith("word") else "layers"
    form: dict[str, Callable[..., Tensor]] = {
        "pair": relations.pair_divergence,
        "distance": lambda *groups: relations.pair_distance(*groups, penalty="smooth_l1"),
        "angle": lambda *groups: relations.angle(*groups, penalty="l2"),
    }
    if "windowed" in name:
        form["angle"] = lambda *groups: relations.angle(*groups, penalty="l2", window=5)
    value = form[name.split()[0].split("_")[1]](getattr(chosen, kind), getattr(own, kind), "valid")
    torch.testing.assert_close(value, RELATIONS[name](teacher[:, [0, 2, 4]], student, MASK))
    assert torch.equal(chosen.states, teacher[:, [0, 2, 4]])


@EVERY
@NORMALIZATIONS
def test_gradcheck(name: str, normalization: str) -> None:
    teacher, student = states(2, 2, 3, 6, 5), states(3, 2, 3, 6, 4).requires_grad_()
    mask = MASK[:, :6]
    assert torch.autograd.gradcheck(lambda x: RELATIONS[name](teacher, x, mask, normalization=normalization), student)


@pytest.mark.parametrize("name", [name for name in RELATIONS if name.startswith("layer")])
def test_layers_of_one_word_are_words_of_one_layer(name: str) -> None:
    """LTR is WR with the two axes exchanged, where nothing is padded."""
    teacher, student = states(0, 2, 3, 7, 6), states(1, 2, 3, 7, 4)
    swapped = RELATIONS[name.replace("layer", "word")](
        teacher.transpose(1, 2), student.transpose(1, 2), torch.ones(2, 3)
    )
    torch.testing.assert_close(RELATIONS[name](teacher, student, torch.ones(2, 7)), swapped)


@EVERY
@NORMALIZATIONS
def test_equal_states_give_nothing(name: str, normalization: str) -> None:
    same = states(0, 2, 3, 7, 6)
    assert RELATIONS[name](same, same.clone(), MASK, normalization=normalization).abs() < 1e-12


@EVERY
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), factor=st.floats(0.1, 10))
def test_rotation_and_scale_change_nothing(name: str, seed: int, factor: float) -> None:
    teacher, student = states(seed, 2, 3, 7, 6), states(seed + 1, 2, 3, 7, 4)
    rotation = torch.linalg.qr(states(seed + 2, 4, 4)).Q
    turned = RELATIONS[name](teacher, student @ rotation * factor, MASK)
    torch.testing.assert_close(turned, RELATIONS[name](teacher, student, MASK), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", ANGLES)
def test_angles_do_not_change_under_translation(name: str) -> None:
    teacher, student = states(0, 2, 3, 7, 6), states(1, 2, 3, 7, 4)
    moved = RELATIONS[name](teacher, student + 5 * states(2, 4), MASK)
    torch.testing.assert_close(moved, RELATIONS[name](teacher, student, MASK))


def test_points_that_nearly_coincide_keep_their_precision() -> None:
    """A sum of squares minus twice a sum of products loses everything here in float32."""
    teacher, student = states(0, 2, 2, 12, 16), states(1, 2, 2, 12, 16)
    student[:, :, 1] = student[:, :, 0] + 3e-3 * states(2, 2, 2, 16)
    teacher[:, :, 1] = teacher[:, :, 0] + 3e-3 * states(3, 2, 2, 16)
    exact = losses.word_angle(teacher, student, torch.ones(2, 12))
    single = losses.word_angle(teacher.float(), student.float(), torch.ones(2, 12))
    assert single.item() == pytest.approx(exact.item(), rel=1e-3)


@EVERY
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_padding_does_not_matter(name: str, seed: int) -> None:
    teacher, student = states(seed, 2, 3, 7, 6), states(seed + 1, 2, 3, 7, 4)
    expected = RELATIONS[name](teacher, student, MASK)
    teacher[1, :, 5:], student[1, :, 5:] = 1e3 * states(seed + 2, 3, 2, 6), -1e3 * states(seed + 3, 3, 2, 4)
    torch.testing.assert_close(RELATIONS[name](teacher, student, MASK), expected)


def degenerate(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    teacher, student, mask = states(0, 3, 3, 6, 5), states(1, 3, 3, 6, 4), torch.ones(3, 6)
    if kind == "one word":
        mask[0, 1:] = 0
    elif kind == "no word":
        mask[1] = 0
    elif kind == "nothing at all":
        mask[:] = 0
    elif kind == "student's words coincide":
        student[0, :, 2] = student[0, :, 1]
        student[1] = 0
    elif kind == "teacher's words coincide":
        teacher[0, :, 2] = teacher[0, :, 1]
        teacher[2] = 3.0
    return teacher.float(), student.float().requires_grad_(), mask


@EVERY
@NORMALIZATIONS
@pytest.mark.parametrize(
    "kind", ["one word", "no word", "nothing at all", "student's words coincide", "teacher's words coincide"]
)
def test_degenerate_sets_give_finite_values_and_gradients(name: str, normalization: str, kind: str) -> None:
    teacher, student, mask = degenerate(kind)
    value = RELATIONS[name](teacher, student, mask, normalization=normalization)
    value.backward()
    assert student.grad is not None
    assert value.isfinite() and student.grad.isfinite().all()
    assert student.grad.abs().max() < 1e4
    if kind == "nothing at all":
        assert value == 0


def test_sides_without_a_length_are_left_out_of_both_models() -> None:
    """A word that stands twice in the student alone is as if its pair of positions were not compared."""
    teacher, student = states(0, 1, 1, 4, 5), states(1, 1, 1, 4, 4)
    student[0, 0, 3] = student[0, 0, 2]
    t, s = cosines_by_differences(teacher[0, 0]), cosines_by_differences(student[0, 0])
    kept = [
        (s[i, j, k] - t[i, j, k]).square()
        for i in range(4)
        for j in range(4)
        for k in range(4)
        if len({i, j, k}) == 3 and {i, j} != {2, 3} and {i, k} != {2, 3}
    ]
    torch.testing.assert_close(losses.word_angle(teacher, student, torch.ones(1, 4)), torch.stack(kept).mean())


def test_anisotropic_states_keep_their_precision() -> None:
    """BERT's upper layers: all tokens nearly parallel. Uncentred Gram matrices lose four digits here."""
    teacher, student = states(0, 2, 2, 16, 64), states(1, 2, 2, 16, 64)
    teacher, student = teacher + 30, student + 30
    exact = losses.word_angle(teacher, student, torch.ones(2, 16))
    single = losses.word_angle(teacher.float(), student.float(), torch.ones(2, 16))
    assert single.item() == pytest.approx(exact.item(), rel=1e-5)


@EVERY
def test_half_precision_states_are_compared_in_single(name: str) -> None:
    teacher, student = states(0, 2, 3, 7, 6).bfloat16(), states(1, 2, 3, 7, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = RELATIONS[name](teacher, student, MASK)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, RELATIONS[name](teacher.float(), student.float(), MASK))


@EVERY
@NORMALIZATIONS
def test_no_loss_looks_at_a_number_on_the_host(name: str, normalization: str) -> None:
    """Tensors without content: whatever would make a GPU wait for its answer raises an error here."""
    with FakeTensorMode():
        student = torch.empty(2, 3, 7, 4, requires_grad=True)
        RELATIONS[name](torch.empty(2, 3, 7, 6), student, torch.empty(2, 7), normalization=normalization).backward()
        with pytest.raises(DataDependentOutputException):
            student.sum().item()


# Dynamo itself does this while it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", ["word_pair", "word_angle windowed", "layer_distance"])
def test_losses_can_be_compiled_whole(name: str) -> None:
    teacher, student = states(0, 2, 3, 7, 6), states(1, 2, 3, 7, 4).requires_grad_()
    compiled = torch.compile(lambda x: RELATIONS[name](teacher, x, MASK), fullgraph=True, backend="aot_eager")
    value = compiled(student)
    torch.testing.assert_close(value, RELATIONS[name](teacher, student, MASK))
    (found,) = torch.autograd.grad(value, student)
    (expected,) = torch.autograd.grad(RELATIONS[name](teacher, student, MASK), student)
    torch.testing.assert_close(found, expected)


def test_no_gradient_reaches_the_teacher() -> None:
    teacher, student = states(0, 2, 3, 7, 6).requires_grad_(), states(1, 2, 3, 7, 4).requires_grad_()
    for loss in RELATIONS.values():
        loss(teacher, student, MASK).backward()
    assert teacher.grad is None


def test_hidden_mse_sums_over_states_and_leaves_padding_out() -> None:
    teacher, student = states(0, 2, 3, 7, 4), states(1, 2, 3, 7, 4)
    error = (teacher - student).square().mean(-1)
    words = torch.cat([error[0], error[1, :, :5]], dim=1)
    torch.testing.assert_close(losses.hidden_mse(teacher, student, MASK), words.mean(1).sum())
    with_padding = losses.hidden_mse(teacher, student, MASK, normalization="reference")
    torch.testing.assert_close(with_padding, error.mean((0, 2)).sum())


def test_wrong_shapes_say_what_is_expected() -> None:
    teacher, student = states(0, 2, 3, 7, 6), states(1, 2, 3, 7, 4)
    with pytest.raises(ValueError, match=r"teacher has \(2, 2, 7, 6\), student has \(2, 3, 7, 4\)"):
        losses.word_pair(teacher[:, :2], student, MASK)
    with pytest.raises(ValueError, match=r"mask must be \[B, n\] = \(2, 7\)"):
        losses.layer_angle(teacher, student, MASK[:, :6])
    with pytest.raises(ValueError, match="equal shapes"):
        losses.hidden_mse(teacher, student, MASK)
    for window in (4, 1):
        with pytest.raises(ValueError, match="odd number"):
            losses.word_angle(teacher, student, MASK, window=window)


# --- layer matching ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "layers", "teacher", "student"),
    [
        ("emb+skip", (12, 6), (0, 2, 4, 6, 8, 10, 12), (0, 1, 2, 3, 4, 5, 6)),
        ("emb+skip", (12, 4), (0, 3, 6, 9, 12), (0, 1, 2, 3, 4)),
        ("emb+skip", (12, 8), (0, 3, 6, 9, 12), (0, 2, 4, 6, 8)),
        ("emb+skip", (12, 9), (0, 4, 8, 12), (0, 3, 6, 9)),
        ("skip", (12, 4), (3, 6, 9, 12), (1, 2, 3, 4)),
        ("last-6", (12, 6), (7, 8, 9, 10, 11, 12), (1, 2, 3, 4, 5, 6)),
        ("final", (12, 4), (12,), (4,)),
        (StateLists(teacher=(0, 6, 12), student=(0, 2, 4)), (12, 4), (0, 6, 12), (0, 2, 4)),
    ],
)
def test_matchings_are_those_of_the_spec(
    how: Any, layers: tuple[int, int], teacher: tuple[int, ...], student: tuple[int, ...]
) -> None:
    assert match(how, *layers) == Matching(teacher, student)


def test_a_matching_that_cannot_be_is_told() -> None:
    relations_of_layers = ObjectiveSettings(logits=1, layer_angle=1, matching="final")
    for objective, message in (
        (
            ObjectiveSettings(logits=1, word_pair=1, matching="last-5"),
            "last-5: teacher and student have 6 and 4 layers",
        ),
        (relations_of_layers, "1 matched states have no layer_angle, which need three"),
        (
            ObjectiveSettings(logits=1, hidden_mse=1, matching={"teacher": [7], "student": [4]}),
            "teacher: there is no state 7; it has states 0 to 6",
        ),
    ):
        with pytest.raises(CompressorError, match=message):
            check_matching(objective, 6, (6, 4), "stages[1] (depth)")
    for wrong in ({"teacher": [1, 2], "student": [1]}, {"teacher": [2, 1], "student": [1, 2]}):
        with pytest.raises(ValueError, match=r"pairs|ascend"):
            StateLists(**wrong)
    with pytest.raises(ValueError, match="pattern"):
        ObjectiveSettings(logits=1, matching="last")


@pytest.mark.parametrize("module", ["relations", "hidden", "logits", "matching"])
def test_examples_of_the_docstrings_are_true(module: str) -> None:
    loaded = importlib.import_module(f"compressor.losses.{module}")
    result = doctest.testmod(loaded)
    assert result.attempted >= 1 and not result.failed
