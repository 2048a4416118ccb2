"""Coded weights through the engines: the same answers, from a folder, from a packed file, and from a server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tauten
from tauten.artifact.pack import pack
from tauten.artifact.read import Artifact
from tauten.artifact.recode import recode
from tauten.codecs import CODECS
from tauten.core.target import Target
from tauten.run.engines import load
from tauten.run.serve.model import ServedModel
from tauten.testing import engines, tiny
from tauten.testing.codecs import same


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return engines.artifact_for("onnx", tmp_path_factory.mktemp("made") / "plain")


def answers(artifact: Artifact | Path) -> dict[str, np.ndarray]:
    engine = load(artifact)
    draw = np.random.default_rng(0)
    inputs = {spec.name: draw.normal(0, 1, spec.concrete(3)).astype(spec.dtype) for spec in engine.inputs}
    found = engine(inputs)
    engine.close()
    return found


@pytest.mark.parametrize("codec", CODECS.names())
def test_every_codec_answers_alike(plain: Artifact, codec: str, tmp_path: Path) -> None:
    coded = recode(plain, codec, tmp_path / "coded")
    assert same(answers(coded), answers(plain))
    assert same(answers(pack(coded, tmp_path / "coded.tauten")), answers(plain))


@pytest.mark.parametrize("name", ["eager", "openvino"])
def test_other_engines_take_them_too(name: str, tmp_path: Path) -> None:
    made = engines.artifact_for(name, tmp_path / "plain")
    coded = recode(made, "arithmetic", tmp_path / "coded")
    assert same(answers(coded), answers(made))
    assert same(answers(pack(made, tmp_path / "coded.tauten", "zstd")), answers(made))


def test_a_packed_file_is_served(plain: Artifact, tmp_path: Path) -> None:
    served = ServedModel.load(pack(plain, tmp_path / "model.tauten", "arithmetic"), name="shipped")
    assert served.platform == "tauten_onnx"
    assert served.inputs == plain.manifest.inputs


def test_four_bit_weights_are_coded_one_by_one(tmp_path: Path) -> None:
    task = tiny.encoder_task()
    model = tauten.quantize(task, "weight_only", bits=4)
    coded = tauten.save(model, tmp_path / "coded", task=task, codec="arithmetic")
    assert coded.manifest.four_bit == {}
    plain = recode(coded, "plain", tmp_path / "plain")
    assert plain.manifest.four_bit
    assert same(coded.weights(), plain.weights())


def test_no_zero_of_a_matrix_keeps_its_sign(tmp_path: Path) -> None:
    task = tiny.cnn_task()
    assert isinstance(task.model, torch.nn.Module)
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter[parameter < 0] *= 0.0
    made = tauten.save(task, tmp_path / "made", target=Target(name="yardstick", engine="eager"))
    for array in made.weights().values():
        assert array.ndim < 2 or not (np.signbit(array) & (array == 0)).any()
