"""The passes: what the module and its notes say, precisions of single layers, ranges, and sensitivity."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import tauten
from tauten.errors import PassError, RecipeError
from tauten.make.layers.quantized import QuantizedLayer
from tauten.make.model.apply import apply
from tauten.make.model.digest import digest
from tauten.make.passes.prune.magnitude import Magnitude
from tauten.make.passes.quantize._convert import precision_of
from tauten.make.passes.quantize._sensitivity import layer_sensitivity
from tauten.make.passes.quantize.dynamic import Dynamic
from tauten.make.passes.quantize.post_training import PostTraining
from tauten.make.passes.quantize.weight_only import WeightOnly
from tauten.testing.tiny import cnn_task

from .trained import begin, digits, task_of, trained, unseen_error


def grids(module: nn.Module) -> dict[str, QuantizedLayer]:
    return {name: part for name, part in module.named_modules() if isinstance(part, QuantizedLayer)}


def test_the_module_computes_on_grids_and_the_notes_tell_how() -> None:
    made = tauten.quantize(task_of(trained()))
    notes = made.history[-1].notes
    assert notes["layers"] == dict.fromkeys(["0", "4", "8", "10"], "int8, a scale a channel, nearest")
    assert notes["refused"] == {}
    assert notes["folded"] == {"1": "0", "5": "4"}
    assert notes["calibration_samples"] == 64
    assert notes["sqnr_db"]["output"] > 30
    first = made.module[0]
    assert first.input_range == (-1.0, 1.0)
    # 256 steps of the input's range: what lies outside is cut, what lies between two steps is rounded.
    one, same = (torch.tensor(numbers).reshape(1, 1, 2, 2) for numbers in ([-5, 0, 0.0041, 5], [-1.1, 0, 0.0078, 1.1]))
    assert torch.equal(first(one), first(same))
    images, labels = (torch.from_numpy(array[1200:]) for array in digits())
    with torch.no_grad():
        accuracy = [float((part(images).argmax(1) == labels).float().mean()) for part in (trained(), made.module)]
    assert accuracy[1] > accuracy[0] - 0.01


@pytest.mark.parametrize("calibration", ["minmax", "percentile", "mse", "entropy"])
def test_ranges_are_the_same_each_time_from_few_samples_or_many(calibration: str) -> None:
    model, context = begin(task_of(trained()))
    for samples in (8, 64):
        made = [apply(PostTraining(calibration=calibration, samples=samples), model, context) for _ in range(2)]
        assert digest(made[0].module) == digest(made[1].module)
        assert unseen_error(trained(), made[0].module) < (0.02 if samples == 8 else 0.01)


def test_the_calibration_that_errs_less_is_chosen() -> None:
    x = np.random.default_rng(0).standard_normal((2000, 100)).astype(np.float32)
    x[0, 0] = 100  # far out, which the widest range spends its steps on
    specs = (tauten.TensorSpec(name="x", shape=("batch", 100)),)
    # Noise is compared on the first samples, where a number far out weighs as much as the rest: it is not among them.
    far = task_of(nn.Linear(100, 2), specs, [({"x": x[::-1].copy()}, None)])
    for task, expected in ((far, "mse"), (task_of(trained()), None)):
        model, context = begin(task)
        tried = [PostTraining(calibration=kind, samples=2000) for kind in ("auto", "minmax", "mse")]
        made = {one.calibration: apply(one, model, context) for one in tried}
        notes = made["auto"].history[-1].notes
        told = {kind: made[kind].history[-1].notes["sqnr_db"] for kind in ("minmax", "mse")}
        assert notes["calibrations_sqnr_db"] == told
        best = max(told, key=lambda kind: told[kind]["output"])
        assert notes["calibration"] == best
        assert expected in (None, best)
        assert digest(made["auto"].module) == digest(made[best].module)
        assert made["auto"].quantization.calibration == best


def test_a_value_far_out_is_cut_by_all_but_the_widest_range() -> None:
    x = np.random.default_rng(0).standard_normal((2000, 100)).astype(np.float32)
    x[0, 0] = 10
    task = task_of(nn.Linear(100, 2), (tauten.TensorSpec(name="x", shape=("batch", 100)),), [({"x": x}, None)])
    tops = {
        way: tauten.quantize(task, calibration=way, samples=2000).module.input_range[1]
        for way in ("minmax", "percentile", "mse", "entropy")
    }
    assert tops.pop("minmax") == 10
    assert all(3 < top < 9 for top in tops.values()), tops


def test_single_layers_take_the_precision_they_are_given() -> None:
    layers = (("0", "float32"), ("4", "int4"), ("8", "bfloat16"))
    made = tauten.quantize(task_of(trained()), layers=layers, rounding="gptq")
    assert {name: layer.bits for name, layer in grids(made.module).items()} == {"4": 4, "10": 8}
    weight = made.module[8].weight
    assert torch.equal(weight.bfloat16().float(), weight)
    assert not torch.equal(weight, trained()[8].weight)
    notes = made.history[-1].notes
    assert notes["layers"]["0"] == "float32, as asked for"
    assert notes["layers"]["8"] == "bfloat16"
    assert made.quantization.layers == dict(layers)
    assert hash(PostTraining(layers=layers)) == hash(
        PostTraining.from_parameters({"layers": [list(p) for p in layers]})
    )


def test_a_module_stands_for_all_in_it_and_the_nearest_holds() -> None:
    plan = PostTraining(layers=(("", "int4"), ("a", "float32"), ("a.b.c", "int8"))).settings().plan
    found = {path: precision_of(path, plan) for path in ("x", "a", "a.b", "a.b.c", "ab")}
    assert found == {"x": "int4", "a": "float32", "a.b": "float32", "a.b.c": "int8", "ab": "int4"}


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_sixteen_bits_are_numbers_of_that_kind(half: str) -> None:
    made = tauten.quantize(task_of(trained()), "weight_only", bits=16, half=half)
    assert not grids(made.module)
    for layer in (part for part in made.module.modules() if isinstance(part, nn.Linear | nn.Conv2d)):
        assert torch.equal(layer.weight.to(getattr(torch, half)).float(), layer.weight)
    assert unseen_error(trained(), made.module) < 1e-4
    assert made.quantization.bits == 16


def test_weights_that_float16_cannot_hold_stay() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        module[1].weight[0, 0] = 1e6
    made = tauten.quantize(task_of(module), "weight_only", bits=16)
    assert "float16 cannot" in made.history[-1].notes["refused"]["1"]


def test_weight_only_has_zero_points_without_data_and_none_with() -> None:
    free, fitted = (
        grids(tauten.quantize(task_of(trained()), "weight_only", rounding=way, group=64).module)
        for way in ("hqq", "gptq")
    )
    assert (free["8"].group, free["8"].scale.shape) == (64, (32, 6))
    assert (free["0"].group, free["0"].scale.shape) == (0, (12,))
    assert all(layer.zero_point is not None and layer.bits == 4 for layer in free.values())
    assert all(layer.zero_point is None for layer in fitted.values())


@pytest.mark.parametrize(
    "step",
    [PostTraining(bits=4, rounding="learned"), PostTraining(bits=4, rounding="gptq"), WeightOnly(group=16), Dynamic()],
    ids=["learned", "gptq", "hqq", "dynamic"],
)
def test_pruned_weights_stay_zero(step) -> None:
    model, context = begin(task_of(trained()))
    pruned = apply(Magnitude(ratio=0.5), model, context)
    made = apply(step, pruned, context)
    for path, layer in grids(made.module).items():
        assert not layer.weight[pruned.module.get_submodule(path).weight == 0].any()


def test_each_layer_alone_costs_less_than_all_and_fewer_bits_more() -> None:
    model, context = begin(task_of(trained()))
    before = digest(model.module)
    found = {bits: layer_sensitivity(model, context, PostTraining(bits=bits)) for bits in (8, 4)}
    assert list(found[4]) == ["0", "4", "8", "10"]
    assert all(0 < found[8][path] < found[4][path] for path in found[4])
    together = apply(PostTraining(bits=4, correct_bias=False), model, context)
    decibels = together.history[-1].notes["sqnr_db"]["output"]
    assert max(found[4].values()) < 10 ** (-decibels / 10) * 1.2
    assert digest(model.module) == before
    with pytest.raises(PassError, match="expected a pass that quantizes layers"):
        layer_sensitivity(model, context, Magnitude(ratio=0.5))


@pytest.mark.parametrize(
    ("method", "parameters", "told"),
    [
        ("post_training", {"samples": 0}, "samples: expected at least 1"),
        ("post_training", {"bits": 2}, "bits"),
        ("post_training", {"group": 1}, "group: expected at least 2"),
        ("post_training", {"smooth": 1.0}, "smooth: expected 0 to less than 1"),
        ("post_training", {"rounding": "hqq"}, "integer kernels lack"),
        ("post_training", {"layers": [["0", "int2"]]}, "layers"),
        ("post_training", {"layers": [["0", "int8"], ["0", "int4"]]}, "'0' is given twice"),
        ("weight_only", {"bits": 16, "rounding": "gptq"}, "leave it out for 16"),
        ("dynamic", {"granularity": "group"}, "granularity"),
    ],
)
def test_parameters_that_do_not_fit_are_told(method: str, parameters: dict, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        tauten.quantize(task_of(trained()), method, **parameters)


def test_a_layer_that_is_not_there_is_told() -> None:
    with pytest.raises(PassError, match=r"the model has no module 'body\.9'"):
        tauten.quantize(task_of(trained()), layers=(("body.9", "int4"),))


def test_progress_and_seed_do_not_change_what_comes() -> None:
    model, context = begin(task_of(trained()))
    step = PostTraining(bits=4, rounding="learned", correct_bias=True, equalize=True)
    first, second = (apply(step, model, context) for _ in range(2))
    for one, other in itertools.zip_longest(first.module.state_dict().values(), second.module.state_dict().values()):
        assert np.array_equal(one.numpy(), other.numpy())


def test_the_engine_can_be_left_to_round() -> None:
    task = cnn_task()
    model = tauten.quantize(task, rounding="engine")
    assert not any(isinstance(module, QuantizedLayer) for module in model.module.modules())
    assert model.quantization is not None
    assert set(model.history[-1].notes["refused"].values()) >= {"left to the engine's own quantizer, as asked for"}
    with pytest.raises(RecipeError, match="rounding: engine"):
        tauten.quantize(task, bits=4, rounding="engine")
