"""What the benchmark of small files is made of; its figures are made by ``python -m bench.compression``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tauten
from bench import _compress_cnn, _compress_training, compression
from tauten.codecs import CODECS
from tauten.make.model.build import to_model
from tauten.make.model.pass_ import Context
from tauten.make.passes.quantize._calibrate import Data
from tauten.make.passes.quantize._fold import fold_batch_norms


@pytest.fixture
def dense() -> nn.Module:
    torch.manual_seed(0)
    module = _compress_cnn.network()
    for part in module:
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.normal_(part.running_mean)
    return module.eval()


def test_the_larger_cnn_has_as_many_parameters_as_the_table_says(dense: nn.Module) -> None:
    assert sum(one.numel() for one in dense.parameters()) == compression.NETS["larger_cnn"][1]


def test_a_file_tells_what_network_it_is_of(dense: nn.Module) -> None:
    images = torch.rand(3, 1, 28, 28)
    for module in (dense, _folded(dense, images)):
        arrays = CODECS.get("plain").decode(CODECS.get("plain").encode(_compress_training.weights_of(module)))
        built = _compress_cnn.network({name: array.shape for name, array in arrays.items()})
        built.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        assert torch.allclose(built.eval()(images), dense(images), atol=1e-4)


def test_a_file_is_judged_by_what_it_decodes_to(
    dense: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).random((20, 1, 28, 28), np.float32)
    with torch.no_grad():
        labels = dense(torch.from_numpy(images)).argmax(1).numpy()
    labels[:5] = (labels[:5] + 1) % 10
    monkeypatch.setattr(_compress_training, "mnist", lambda split, pictures: (images, labels))
    file = tmp_path / "weights"
    file.write_bytes(CODECS.get("arithmetic").encode(_compress_training.weights_of(dense)))
    assert _compress_training.test_error(_compress_cnn.CASE, file) == 25.0


def test_seeds_are_told_as_means_and_the_distance_between_them() -> None:
    runs = {seed: _run(bytes=1000 + 10 * seed, test_error=1.0 + seed) for seed in (0, 2)}
    told = _compress_training.summary(runs)
    assert (told["bytes"], told["bytes_spread"], told["test_error"], told["test_error_spread"]) == (1010, 20, 2.0, 2.0)
    assert told["seeds"] == [0, 2]
    assert told["coders"] == {"zlib_9": 30, "zstd_22": 20, "huffman": 15}


def test_the_same_weights_are_coded_by_every_coder() -> None:
    random = np.random.default_rng(0)
    levels = (random.integers(-2, 3, (60, 80)) * (random.random((60, 80)) < 0.1)).astype(np.float32)
    told = _compress_training.coders({"weight": levels * 0.25 + 0.0}, {"weight": 0.25})
    assert told["float32"] == 4 * 4800
    assert told["arithmetic"] < told["huffman"] < told["zlib_9"]


def test_the_table_has_what_there_are_figures_of() -> None:
    net = {**_compress_training.summary({0: _run()}), "drop_points": -0.1}
    both = {**_compress_training.summary({0: _run(), 1: _run(bytes=1200)})}
    told = compression.table({"lenet_5": both, "larger_cnn": net})
    cells = [[one.strip() for one in line.split("|")[1:-1]] for line in told.splitlines()]
    rows = {first: others for first, *others in cells}
    assert rows["float32, bytes"] == ["1,724,320", "4,122,312"]
    assert rows["**file, bytes**"] == ["1,100 (spread 200)", "1,000"]
    assert rows["seeds"] == ["0, 1", "0"]
    assert "MiniLM" not in told
    assert compression.table({}) == ""


def _run(**changed: float) -> dict[str, Any]:
    errors = {"test_error": 1.0, "dense_test_error": 1.0, "val_error": 1.0, "dense_val_error": 1.0}
    coders = {"zlib_9": 30, "zstd_22": 20, "huffman": 15}
    return {"bytes": 1000, "ratio": 100.0, "cpu_seconds": 9.0, **errors, "coders": coders, **changed}


def _folded(module: nn.Module, images: torch.Tensor) -> nn.Module:
    batch = [({"image": images.numpy()}, None)]
    spec = tauten.TensorSpec(name="image", shape=("batch", 1, 28, 28))
    task = tauten.Task(name="cnn", model=module, inputs=(spec,), calibrate=batch, validate=batch)
    model = to_model(task)
    folded, notes = fold_batch_norms(model, Data(model, Context(task, model.module, 0), 3))
    assert len(notes["folded"]) == 4
    return folded
