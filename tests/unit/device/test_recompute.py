"""Blocks that are computed twice, in models of every build: the same gradients from less memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tauten.errors import PassError
from tauten.make.model.fit import labelled
from tauten.make.model.train import Trainer, Training
from tauten.make.model.training.blocks import choose_blocks, find_all
from tauten.make.model.training.recompute import recomputing
from tauten.testing.tiny import Residual, TransformerBlock, VisionTransformer, cnn_task
from tests.unit.train.problems import CLASSES, FEATURES, classify


class ByName(nn.Module):
    """Residual blocks that are attributes, not in a container."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.one, self.two, self.three = Residual(4, 4, 1), Residual(4, 8, 2), Residual(8, 8, 1)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.three(self.two(self.one(self.stem(x)))).mean((2, 3)))
        return found


class Unlike(nn.Module):
    """Two parts of different classes, neither repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(1, 4, 3, padding=1), Residual(4, 4, 1), TransformerBlock(8, 2)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.right(self.left(self.stem(x)).flatten(1, 2)))
        return found


class Early(nn.Module):
    """Writes over what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.conv = nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.conv(self.relu(x))
        return found


def chain() -> nn.Module:
    layers = [layer for _ in range(4) for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True))]
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *layers, nn.Dropout(0.5), nn.Flatten())


def gradients(module: nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(3)
    module.zero_grad()
    module(image).square().sum().backward()
    return [parameter.grad for parameter in module.parameters() if parameter.grad is not None]


def kept(module: nn.Module, image: torch.Tensor) -> int:
    """How many numbers autograd keeps."""
    sizes: dict[int, int] = {}
    own = {parameter.data_ptr() for parameter in module.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            sizes[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(image).sum()
    return sum(sizes.values())


BUILDS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "by name": (ByName, ["one", "two", "three"]),
    "in a list": (VisionTransformer, ["blocks.0", "blocks.1"]),
    "a chain": (chain, ["0 to 4", "5 to 8", "9 to 10"]),
    "unlike": (Unlike, ["left", "right"]),
    "cnn": (lambda: cnn_task().build(), ["0 to 2", "3 to 5", "6 to 8"]),
}


@pytest.mark.parametrize(("build", "names"), BUILDS.values(), ids=BUILDS)
def test_blocks_are_found_and_give_the_same_gradients(build: Callable[[], nn.Module], names: list[str]) -> None:
    torch.manual_seed(0)
    module, image = build().train(), torch.randn(4, 1, 8, 8)
    assert [block.name for block in find_all(module)] == names
    state = {name: value.clone() for name, value in module.state_dict().items()}
    before, expected = kept(module, image), gradients(module, image)
    after = {name: value.clone() for name, value in module.state_dict().items()}
    module.load_state_dict(state)
    refused: dict[str, str] = {}
    with recomputing(True, module, lambda: module(image), refused) as count:
        assert count == len(names), refused
        less, came = kept(module, image), gradients(module, image)
    assert less < 0.8 * before
    assert all(torch.equal(one, other) for one, other in zip(came, expected, strict=True))
    assert all(torch.equal(value, after[name]) for name, value in module.state_dict().items())
    assert not any("forward" in part.__dict__ for part in module.modules())


def test_blocks_are_chosen_by_name() -> None:
    module, image = ByName().train(), torch.randn(4, 1, 8, 8)
    expected = gradients(module, image)
    with recomputing(("two",), module, lambda: module(image)) as count:
        assert count == 1
        assert [name for name, part in module.named_modules() if "forward" in part.__dict__] == ["two"]
        assert all(torch.equal(a, b) for a, b in zip(gradients(module, image), expected, strict=True))
    with pytest.raises(PassError, match="no module 'four'"):
        choose_blocks(module, ("four",))
    with pytest.raises(PassError, match=r"two.conv1 lies in two|two lies in"):
        choose_blocks(module, ("two", "two.conv1"))


def test_what_must_not_be_computed_twice_is_refused_by_name() -> None:
    class Iterated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.early = nn.ModuleList([Early(), Early()])
            self.pairs = nn.ModuleList([nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()) for _ in range(2)])
            self.last = nn.ModuleList([nn.Sequential(nn.Flatten(), nn.Linear(256, 2)) for _ in range(2)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.early:
                x = block(x)
            for pair in self.pairs:
                for layer in pair:  # not called as a whole
                    x = layer(x)
            found: torch.Tensor = sum(last(x) for last in self.last)  # type: ignore[assignment]
            return found

    module, image = Iterated().train(), torch.randn(2, 4, 8, 8)
    expected = gradients(module, image.clone())
    refused: dict[str, str] = {}
    with recomputing(True, module, lambda: module(image.clone()), refused) as count:
        assert count == 2
        came = gradients(module, image.clone())
    assert set(refused) == {"early.0", "early.1", "pairs.0", "pairs.1"}
    assert "writes over what it is given" in refused["early.0"]
    assert "not called as a whole" in refused["pairs.0"]
    assert all(torch.equal(one, other) for one, other in zip(came, expected, strict=True))


def test_recurrent_layers_keep_their_own() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.norm = nn.LSTM(FEATURES, FEATURES), nn.LayerNorm(FEATURES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.norm(self.lstm(x)[0])
            return found

    module = nn.Sequential(Reader(), Reader())
    refused: dict[str, str] = {}
    with recomputing(True, module, lambda: module(torch.zeros(2, FEATURES)), refused) as count:
        assert count == 0
    assert "recurrent" in refused["0"]


def test_training_tells_what_a_step_takes_before_and_after() -> None:
    task = classify()
    module = nn.Sequential(nn.Linear(FEATURES, 8), *(TransformerBlock(8, 2) for _ in range(2)), nn.Linear(8, CLASSES))
    wide = nn.Sequential(nn.Unflatten(1, (FEATURES, 1)), nn.Flatten(), module[0], nn.Unflatten(1, (1, 8)), *module[1:])
    wide = nn.Sequential(wide, nn.Flatten())
    trained = Trainer(task.inputs, (), Training(epochs=1, recompute=("0.4",)), labelled(task))(wide, task.data("train"))
    assert trained.recomputed == 1
    notes = trained.to_notes()
    assert set(notes["step_mib"]) == {"before", "after"}
    assert "rows_at_once" not in notes
