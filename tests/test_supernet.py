"""Sub-networks as views: equal to cut models, to the teacher at full size, and different from each other."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig

from compressor.errors import CompressorError
from compressor.search.pruner import importance_by_nni
from compressor.supernet.architectures import Dimensions
from compressor.supernet.dropout import ThriftyDropout
from compressor.supernet.importance import GateGradients, SquaredTaylor, importance, magnitude
from compressor.supernet.rewiring import rewire
from compressor.supernet.subnetworks import (
    Subnetwork,
    encoder_macs,
    grid,
    kept_layers,
    paired_states,
    round_half_up,
    subnetwork,
)
from compressor.supernet.supernetwork import SuperNetwork
from tests.conftest import tiny_inputs, tiny_model

WIDTHS, DEPTHS = (1.0, 0.75, 0.5, 0.25), (1.0, 0.75, 0.5)
# Layers that differ from each other, as a search would choose them.
UNEVEN = Subnetwork(kept=(0, 2, 3), heads=(1, 4, 2), neurons=(64, 7, 30))


def run(supernet: SuperNetwork, size: Subnetwork, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return supernet.run(size, supernet.embed(inputs), inputs["attention_mask"]).logits


def cut_by_hand(model: Any, size: Subnetwork, head_rows: int) -> Any:
    """A deep copy whose Linear layers were cut one by one, without any code of the project."""
    cut = copy.deepcopy(model)
    encoder = cut.base_model.encoder
    encoder.layer = nn.ModuleList(encoder.layer[layer] for layer in size.kept)
    for layer, heads, neurons in zip(encoder.layer, size.heads, size.neurons, strict=True):
        rows = heads * head_rows
        own = layer.attention.self
        for linear in (own.query, own.key, own.value):
            linear.weight, linear.bias = nn.Parameter(linear.weight[:rows]), nn.Parameter(linear.bias[:rows])
        output = layer.attention.output.dense
        output.weight = nn.Parameter(output.weight[:, :rows])
        first, second = layer.intermediate.dense, layer.output.dense
        first.weight, first.bias = nn.Parameter(first.weight[:neurons]), nn.Parameter(first.bias[:neurons])
        second.weight = nn.Parameter(second.weight[:, :neurons])
    return cut


def test_full_size_equals_the_teacher(supernet: SuperNetwork) -> None:
    inputs = tiny_inputs()
    assert torch.equal(run(supernet, supernet.whole, inputs), supernet.model(**inputs).logits)


def test_views_equal_the_cut_model_to_the_last_bit(supernet: SuperNetwork) -> None:
    inputs = tiny_inputs()
    for size in [*grid(supernet.dimensions, WIDTHS, DEPTHS).values(), UNEVEN]:
        cut = cut_by_hand(supernet.model, size, supernet.dimensions.head_rows)
        assert torch.equal(run(supernet, size, inputs), cut(**inputs).logits)
        assert supernet.parameters(size) == sum(p.numel() for p in cut.parameters())


def test_every_size_differs_from_every_other(supernet: SuperNetwork) -> None:
    inputs = tiny_inputs()
    logits = [run(supernet, size, inputs) for size in grid(supernet.dimensions, WIDTHS, DEPTHS).values()]
    assert len(logits) == 12
    for place, one in enumerate(logits):
        for other in logits[:place]:
            assert (one - other).abs().max() > 1e-4


def test_hidden_states_are_those_of_the_cut_model(supernet: SuperNetwork) -> None:
    inputs = tiny_inputs()
    output = supernet.run(UNEVEN, supernet.embed(inputs), inputs["attention_mask"], hidden_states=True)
    expected = cut_by_hand(supernet.model, UNEVEN, 8)(**inputs, output_hidden_states=True).hidden_states
    assert len(output.hidden_states) == 4
    for found, wanted in zip(output.hidden_states, expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.filterwarnings("ignore:grad and param do not obey the gradient layout contract")
def test_gradients_land_in_the_slices(supernet: SuperNetwork) -> None:
    inputs = tiny_inputs()
    leaves = supernet.inner_views(UNEVEN, detached=True)
    embeddings = supernet.embed(inputs)
    supernet.run(UNEVEN, embeddings, inputs["attention_mask"], tensors=leaves).logits.square().sum().backward()
    found = {name: p.grad for name, p in supernet.model.named_parameters()}

    fresh = SuperNetwork(copy.deepcopy(supernet.model))
    fresh.model.zero_grad()
    run(fresh, UNEVEN, inputs).square().sum().backward()
    for name, parameter in fresh.model.named_parameters():
        if parameter.grad is None:
            assert found[name] is None or not found[name].any(), name
        else:
            torch.testing.assert_close(found[name], parameter.grad, msg=name)


def test_sub_networks_that_do_not_fit_are_refused(supernet: SuperNetwork) -> None:
    for wrong in (
        Subnetwork((0, 0), (1, 1), (1, 1)),
        Subnetwork((0, 4), (1, 1), (1, 1)),
        Subnetwork((0, 1), (1, 5), (1, 1)),
        Subnetwork((0, 1), (1, 1), (0, 1)),
        Subnetwork((0, 1), (1,), (1, 1)),
    ):
        with pytest.raises(ValueError, match=r"kept|heads|neurons"):
            supernet.views(wrong)


# --- sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "depth", "one_based"),
    [
        ("paper", 9, [1, 2, 4, 5, 6, 8, 9, 10, 12]),
        ("paper", 6, [2, 4, 6, 8, 10, 12]),
        ("paper", 12, list(range(1, 13))),
        ("reference", 9, [1, 2, 3, 5, 6, 7, 9, 10, 11]),
        ("reference", 6, [1, 3, 5, 7, 9, 11]),
    ],
)
def test_kept_layers_of_twelve(rule: Any, depth: int, one_based: list[int]) -> None:
    assert [layer + 1 for layer in kept_layers(12, depth, rule)] == one_based


@pytest.mark.parametrize("layers", range(1, 25))
def test_kept_layers_of_any_depth(layers: int) -> None:
    for depth in range(1, layers + 1):
        for rule in ("paper", "reference"):
            kept = kept_layers(layers, depth, rule)  # type: ignore[arg-type]
            assert len(set(kept)) == depth and sorted(kept) == list(kept) and 0 <= kept[0] <= kept[-1] < layers
        assert kept_layers(layers, depth, "paper")[-1] == layers - 1


def test_paired_states_are_those_of_the_spec() -> None:
    assert paired_states(kept_layers(12, 9, "reference"), 12, "reference") == (0, 1, 2, 4, 5, 6, 8, 9, 10, 12)
    assert paired_states(kept_layers(12, 6, "reference"), 12, "reference") == (0, 2, 4, 6, 8, 10, 12)
    assert paired_states(kept_layers(12, 6, "paper"), 12, "paper") == (0, 2, 4, 6, 8, 10, 12)
    assert paired_states(kept_layers(12, 9, "paper"), 12, "paper") == (0, 1, 2, 4, 5, 6, 8, 9, 10, 12)


def test_rounding_never_leaves_a_layer_without_heads() -> None:
    assert [round_half_up(value) for value in (0.1, 0.5, 1.5, 2.5, 2.49)] == [1, 1, 2, 3, 2]
    assert subnetwork(Dimensions(2, 2, 10, 4), 0.25, 1.0) == Subnetwork((0, 1), (1, 1), (3, 3))


def test_bert_base_has_the_parameters_and_macs_of_the_paper() -> None:
    """DynaBERT's sizes of BERT-base at 128 tokens: the table of the spec, section 2.3."""
    with torch.device("meta"):
        supernet = SuperNetwork(AutoModelForSequenceClassification.from_config(BertConfig()))
    expected = {
        "w1.00-d1.00": (109.5, 11.17),
        "w0.75-d0.75": (72.3, 6.29),
        "w0.50-d1.00": (67.0, 5.59),
        "w0.50-d0.75": (56.3, 4.19),
        "w0.25-d0.50": (35.1, 1.40),
    }
    sizes = grid(supernet.dimensions, WIDTHS, DEPTHS)
    for name, (millions, giga) in expected.items():
        assert supernet.parameters(sizes[name]) / 1e6 == pytest.approx(millions, abs=0.06)
        assert encoder_macs(sizes[name], supernet.dimensions, 128) / 1e9 == pytest.approx(giga, abs=0.006)


def test_two_multipliers_for_one_size_are_refused() -> None:
    with pytest.raises(CompressorError, match=r"w1.00-d1.00 and w1.00-d0.75 are the same sub-network"):
        grid(Dimensions(2, 4, 64, 32), (1.0,), (1.0, 0.75))


# --- importance and rewiring ---------------------------------------------------------------------------------------


def batches() -> list[dict[str, torch.Tensor]]:
    return [{**tiny_inputs(seed=seed), "labels": torch.tensor([0, 1, 2])} for seed in range(3)]


def loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch).loss


def gate_gradients(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """∂L/∂ξ [layers, heads] of gates ξ=1 that are multiplied onto each head's attention output."""
    gates = torch.ones(4, 4, requires_grad=True)
    handles = [
        layer.attention.output.dense.register_forward_pre_hook(
            lambda _, inputs, gate=gates[place]: (inputs[0] * gate.repeat_interleave(8),)
        )
        for place, layer in enumerate(model.base_model.encoder.layer)
    ]
    (gradient,) = torch.autograd.grad(loss(model, batch), gates)
    for handle in handles:
        handle.remove()
    return gradient


def test_head_importance_is_the_gradient_of_a_gate(supernet: SuperNetwork) -> None:
    gradients = [gate_gradients(supernet.model, batch) for batch in batches()]
    running = [torch.stack(gradients[: place + 1]).sum(0).abs() for place in range(3)]
    expected = {
        "sum_abs": torch.stack(gradients).abs().sum(0),
        "abs_sum": torch.stack(gradients).sum(0).abs(),
        "reference": torch.stack(running).sum(0),
    }
    for reduction, wanted in expected.items():
        found = importance(supernet, batches(), loss, GateGradients(reduction))  # type: ignore[arg-type]
        torch.testing.assert_close(found.heads, wanted, rtol=1e-4, atol=1e-6)


def test_neuron_importance_adds_both_sides(supernet: SuperNetwork) -> None:
    expected = torch.zeros(4, 64)
    for batch in batches():
        supernet.model.zero_grad()
        loss(supernet.model, batch).backward()
        for place, layer in enumerate(supernet.model.base_model.encoder.layer):
            first, second = layer.intermediate.dense, layer.output.dense
            for neuron in range(64):
                inward = first.weight[neuron] @ first.weight.grad[neuron] + first.bias[neuron] * first.bias.grad[neuron]
                outward = second.weight[:, neuron] @ second.weight.grad[:, neuron]
                expected[place, neuron] += (inward.abs() + outward.abs()).item()
    torch.testing.assert_close(
        importance(supernet, batches(), loss, GateGradients()).neurons, expected, rtol=1e-4, atol=1e-6
    )


def test_squared_taylor_and_magnitude_sum_over_what_a_group_owns(supernet: SuperNetwork) -> None:
    taylor, size = torch.zeros(4, 4), torch.zeros(4, 64)
    for batch in batches():
        supernet.model.zero_grad()
        loss(supernet.model, batch).backward()
        for place, layer in enumerate(supernet.model.base_model.encoder.layer):
            attention = layer.attention.self
            for head in range(4):
                own = slice(8 * head, 8 * head + 8)
                parts = [
                    (one.weight * one.weight.grad)[own] for one in (attention.query, attention.key, attention.value)
                ]
                out = layer.attention.output.dense
                parts.append((out.weight * out.weight.grad)[:, own])
                taylor[place, head] += sum((part**2).sum() for part in parts).item()
    for place, layer in enumerate(supernet.model.base_model.encoder.layer):
        size[place] = layer.intermediate.dense.weight.abs().sum(1) + layer.output.dense.weight.abs().sum(0)
    found = importance(supernet, batches(), loss, SquaredTaylor())
    torch.testing.assert_close(found.heads, taylor, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(magnitude(supernet).neurons, size)


@pytest.mark.parametrize("criterion", ["dynabert", "taylor"])
def test_nni_ranks_as_torch_does(supernet: SuperNetwork, criterion: Any) -> None:
    before = {name: value.clone() for name, value in supernet.model.state_dict().items()}
    collector = GateGradients() if criterion == "dynabert" else SquaredTaylor()
    expected = importance(supernet, batches(), loss, collector)
    found = importance_by_nni(supernet, batches(), loss, criterion)
    for ours, theirs in ((expected.heads, found.heads), (expected.neurons, found.neurons)):
        assert torch.equal(ours.argsort(descending=True, stable=True), theirs.argsort(descending=True, stable=True))
    after = supernet.model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in supernet.model.parameters())


def test_importance_is_measured_without_dropout(supernet: SuperNetwork) -> None:
    expected = importance(supernet, batches(), loss, GateGradients())
    supernet.model.train()
    found = importance(supernet, batches(), loss, GateGradients())
    assert torch.equal(found.heads, expected.heads) and torch.equal(found.neurons, expected.neurons)


def test_rewiring_preserves_the_function_and_sorts(supernet: SuperNetwork) -> None:
    inputs = tiny_inputs()
    before = supernet.model(**inputs).logits
    smallest = run(supernet, subnetwork(supernet.dimensions, 0.25, 1.0), inputs)
    rewire(supernet, importance(supernet, batches(), loss, GateGradients()))
    torch.testing.assert_close(supernet.model(**inputs).logits, before, rtol=0, atol=1e-5)
    assert not torch.allclose(run(supernet, subnetwork(supernet.dimensions, 0.25, 1.0), inputs), smallest)
    again = importance(supernet, batches(), loss, GateGradients())
    for scores in (again.heads, again.neurons):
        assert (scores[:, :-1] - scores[:, 1:] > -1e-4).all()


def test_importance_without_data_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        importance(SuperNetwork(tiny_model()), [], loss, GateGradients())


def test_thrifty_dropout_drops_as_often_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    ones = torch.ones(64, 33, 41, requires_grad=True)
    dropout = ThriftyDropout(0.1)
    dropped = dropout(ones)
    dropped.sum().backward()
    assert set(dropped.unique().tolist()) == {0.0, dropped.max().item()}
    # 86,592 elements: five standard deviations are 0.005.
    assert abs((dropped == 0).float().mean().item() - 0.1) < 0.005
    assert abs(dropped.max().item() - 1 / 0.9) < 1e-4
    assert ones.grad is not None and torch.equal(ones.grad, dropped.detach())
    assert not torch.equal(dropout(ones), dropped)
    assert torch.equal(dropout.eval()(ones), ones)
    assert not ThriftyDropout(1.0)(ones).count_nonzero()


def test_skeletons_drop_with_thrifty_dropout() -> None:
    supernet = SuperNetwork(tiny_model(hidden_dropout_prob=0.3))
    inputs = tiny_inputs()
    embeddings = supernet.embed(inputs).detach()
    supernet.run(supernet.whole, embeddings, inputs["attention_mask"])
    found = [module for module in supernet._skeleton(4).modules() if isinstance(module, nn.Dropout)]
    assert {type(module) for module in found} == {ThriftyDropout} and {module.p for module in found} == {0.3, 0.1}
    supernet.train(True)
    answers = [supernet.run(supernet.whole, embeddings, inputs["attention_mask"]).logits for _ in range(2)]
    assert not torch.equal(*answers)
