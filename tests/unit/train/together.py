"""One of several processes that train together: ``python -m tests.unit.train.together FOLDER``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

import tauten
from tauten.make.model.fit import labelled
from tauten.make.model.train import Checkpoints, Trained, Trainer, Training
from tests.unit.train.problems import CLASSES, FEATURES, classify, clouds, in_batches


class Net(nn.Module):
    """With weights that are zero, and a layer that no gradient reaches."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.head, self.unused = nn.Linear(FEATURES, 16), nn.Linear(16, CLASSES), nn.Linear(2, 2)
        with torch.no_grad():
            self.first.weight[:, ::2] = 0

    def forward(self, point: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(torch.relu(self.first(point)))
        return found


def task(size: int) -> tauten.Task:
    """84 samples: batches of 8, of which the last step has one for two processes."""
    return classify(train=in_batches(*clouds(84, 0), size), validate=in_batches(*clouds(40, 2), 8))


def run(size: int, seed: int = 0, folder: Path | None = None) -> tuple[nn.Module, Trained]:
    """Train; each process may begin with weights of its own, of which the main one's count."""
    data, module = task(size), Net(seed)
    checkpoints = None if folder is None else Checkpoints(folder)
    trainer = Trainer(data.inputs, (), Training(epochs=3, learning_rate=1e-2), labelled(data), checkpoints=checkpoints)
    return module, trainer(module, data.data("train"), data.data("validate"), keep_zeros=True)


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    module, trained = run(8, seed=rank, folder=folder / "kept")
    save_file(module.state_dict(), folder / f"{rank}.safetensors")
    print(trained.processes, trained.samples, *trained.losses)
    torch.distributed.destroy_process_group()
