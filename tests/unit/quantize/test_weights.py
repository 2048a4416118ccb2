"""A quantized PyTorch model as a file: it comes back the same, 4 bits take half a byte, and no file is trusted."""

from __future__ import annotations

import copy
import json
import pickle
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import tauten
from tauten.errors import ArtifactError, TaskError
from tauten.make.layers.quantized import QuantizedLayer
from tauten.make.model.model import Model
from tauten.testing.tiny import encoder_task, residual_task

from .trained import digits, task_of, trained


def fresh() -> nn.Module:
    """The trained model's architecture, with other numbers."""
    torch.manual_seed(9)
    module = copy.deepcopy(trained())
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data.normal_()
    return module


WAYS = {
    "static": ("post_training", {}),
    "corrected": ("post_training", {"bits": 4, "rounding": "gptq", "correct_bias": True}),
    "unfolded": ("post_training", {"fold": False}),
    "grouped": ("weight_only", {"group": 20}),
    "half": ("weight_only", {"bits": 16}),
    "bfloat16": ("weight_only", {"bits": 16, "half": "bfloat16"}),
    "dynamic": ("dynamic", {}),
}


@cache
def quantized(way: str) -> Model:
    method, parameters = WAYS[way]
    return tauten.quantize(task_of(trained()), method, **parameters)


@pytest.mark.parametrize("way", WAYS)
def test_what_was_saved_answers_the_same_to_the_bit(way: str, tmp_path: Path) -> None:
    path = tauten.save_module(quantized(way), tmp_path / "deep" / "model.safetensors")
    loaded = tauten.load_module(path, fresh)
    images = torch.from_numpy(digits()[0][:50])
    with torch.no_grad():
        assert torch.equal(loaded(images), quantized(way).module(images))
    assert not loaded.training
    assert [type(part) for part in loaded.modules()] == [type(part) for part in quantized(way).module.modules()]
    assert list(path.parent.iterdir()) == [path]


def test_four_bits_take_half_a_byte_and_sixteen_two(tmp_path: Path) -> None:
    weights = sum(layer.weight.numel() for layer in trained().modules() if isinstance(layer, nn.Linear | nn.Conv2d))
    size = {
        way: tauten.save_module(model, tmp_path / way).stat().st_size
        for way, model in {"float": trained(), "static": quantized("static"), "corrected": quantized("corrected"),
                           "half": quantized("half")}.items()
    }  # fmt: skip
    beside = size["float"] - 4 * weights + 4000
    for way, bytes_a_weight in (("static", 1), ("corrected", 0.5), ("half", 2)):
        assert bytes_a_weight * weights < size[way] < bytes_a_weight * weights + beside


@pytest.mark.parametrize("make", [encoder_task, residual_task], ids=lambda make: make.__name__)
def test_embeddings_and_blocks_come_back_from_a_task(make, tmp_path: Path) -> None:
    task = make()
    made = tauten.quantize(task, "weight_only", group=6)
    loaded = tauten.load_module(tauten.save_module(made, tmp_path / "model"), make(seed=3))
    inputs = [torch.from_numpy(task.calibrate[0][0][spec.name]) for spec in made.inputs]
    with torch.no_grad():
        assert torch.equal(loaded(*inputs), made.module(*inputs))


def test_tied_tensors_stay_tied_in_the_file(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
            self.second.weight = self.first.weight
            self.third = nn.Linear(64, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.third(self.second(self.first(x.flatten(1))))

    made = tauten.quantize(task_of(Tied()))
    path = tauten.save_module(made, tmp_path / "tied")
    assert path.stat().st_size < 4 * 64 * 64 + 6000
    loaded = tauten.load_module(path, Tied)
    assert loaded.first.weight is loaded.second.weight
    assert torch.equal(loaded.first.weight, made.module.first.weight)


def test_a_module_itself_is_copied_and_one_of_another_make_is_told(tmp_path: Path) -> None:
    path = tauten.save_module(quantized("static"), tmp_path / "model")
    given = fresh()
    assert isinstance(tauten.load_module(path, given)[0], QuantizedLayer)
    assert torch.equal(given[0].weight, fresh()[0].weight)
    with pytest.raises(ArtifactError, match="the module has no part '10'"):
        tauten.load_module(path, lambda: nn.Sequential(*list(fresh())[:8]))
    with pytest.raises(ArtifactError, match=r"codes: expected torch\.int8\(12, 1, 5, 5\)"):
        tauten.load_module(path, lambda: nn.Sequential(nn.Conv2d(1, 12, 5), *list(fresh())[1:]))
    wider = nn.Sequential(*fresh())
    wider.add_module("more", nn.Linear(2, 2))
    with pytest.raises(ArtifactError, match="only the module has 'more"):
        tauten.load_module(path, wider)
    with pytest.raises(TaskError, match="got a int"):
        tauten.load_module(path, lambda: 3)


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    class Stateful(nn.Module):
        def get_extra_state(self) -> dict:
            return {"a": 1}

    with pytest.raises(TaskError, match="expected a tensor, got a dict"):
        tauten.save_module(Stateful(), tmp_path / "model")


def parts(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["tauten"])  # noqa: SIM118


def hostile() -> dict:
    """What is done to tensors and header of the grouped model, by name."""

    def entry(**changes):
        return lambda tensors, header: header["layers"]["8"].update(changes)

    def tensor(name, change):
        return lambda tensors, header: tensors.update({name: change(tensors[name])})

    return {
        "scale of zero": tensor("8.scale", torch.zeros_like),
        "scale of nan": tensor("8.scale", lambda t: t * torch.nan),
        "scale cut": tensor("8.scale", lambda t: t[:-1].clone()),
        "zero point far out": tensor("8.zero_point", lambda t: t + 40),
        "codes cut": tensor("8.codes", lambda t: t[:-1].clone()),
        "codes of another type": tensor("8.codes", lambda t: t.float()),
        "codes gone": lambda tensors, header: tensors.pop("8.codes"),
        "another tensor": lambda tensors, header: tensors.update(extra=torch.zeros(1)),
        "bias of another shape": tensor("8.layer.bias", lambda t: t[:-1].clone()),
        "bias of another type": tensor("8.layer.bias", lambda t: t.double()),
        "bits": entry(bits=3),
        "bits that are true": entry(bits=True),
        "axis": entry(axis=7),
        "axis that is negative": entry(axis=-1),
        "group": entry(group=10**9),
        "group that is negative": entry(group=-1),
        "group of a text": entry(group="20"),
        "no zero point": entry(zero_point=False),
        "an input": entry(input=True),
        "more in an entry": entry(code="import os"),
        "a layer that is none": lambda tensors, header: header["layers"].update({"2": header["layers"]["8"]}),
        "a layer that is not there": lambda tensors, header: header["layers"].update({"99": header["layers"]["8"]}),
        "the root": lambda tensors, header: header["layers"].update({"": header["layers"]["8"]}),
        "layers in a list": lambda tensors, header: header.update(layers=[]),
        "an identity that is none": lambda tensors, header: header["identities"].append("10"),
        "an identity of a number": lambda tensors, header: header["identities"].append(3),
        "tied to nothing": lambda tensors, header: (
            header["tied"].update({"10.layer.bias": "nowhere"}) or tensors.pop("10.layer.bias")
        ),
        "another version": lambda tensors, header: header.update(version=2),
    }


@pytest.mark.parametrize("fault", hostile())
def test_a_file_that_lies_is_refused(fault: str, tmp_path: Path) -> None:
    path = tauten.save_module(quantized("grouped"), tmp_path / "model")
    tensors, header = parts(path)
    hostile()[fault](tensors, header)
    save_file(tensors, path, {"tauten": json.dumps(header)})
    with pytest.raises(ArtifactError, match="model: "):
        tauten.load_module(path, fresh)


@pytest.mark.parametrize("ends", [(0.0, 0.0), (1.0, 2.0), (-1.0, float("inf")), (float("nan"), 1.0)], ids=str)
def test_a_range_that_is_none_is_refused(ends: tuple[float, float], tmp_path: Path) -> None:
    path = tauten.save_module(quantized("static"), tmp_path / "model")
    tensors, header = parts(path)
    tensors["0.input_low"], tensors["0.input_high"] = (torch.tensor(end) for end in ends)
    save_file(tensors, path, {"tauten": json.dumps(header)})
    with pytest.raises(ArtifactError, match="expected a range around 0"):
        tauten.load_module(path, fresh)


def test_no_file_a_cut_one_and_one_of_others_are_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="expected a file of"):
        tauten.load_module(tmp_path / "none", fresh)
    path = tauten.save_module(quantized("static"), tmp_path / "model")
    whole = path.read_bytes()
    for end in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(ArtifactError, match="expected a file of"):
            tauten.load_module(path, fresh)
    for metadata in (None, {"tauten": "no JSON"}, {"tauten": '{"version": 1, "version": 1}'}, {"tauten": "[" * 10**5}):
        save_file({"a": torch.zeros(2)}, path, metadata)
        with pytest.raises(ArtifactError, match="header"):
            tauten.load_module(path, fresh)
    path.write_bytes(pickle.dumps(np.zeros(3)))
    with pytest.raises(ArtifactError, match="expected a file of"):
        tauten.load_module(path, fresh)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match="cannot be written"):
        tauten.save_module(quantized("static"), tmp_path / "file" / "model")
