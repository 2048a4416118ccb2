from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.train.together import run

ROOT = Path(__file__).parents[3]
PROCESSES = 2


def launch(folder: Path) -> list[str]:
    """What each of the processes printed; started as ``accelerate launch`` starts them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(PROCESSES), "ACCELERATE_USE_CPU": "true"}
    told |= {"LOCAL_WORLD_SIZE": str(PROCESSES), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.unit.train.together", str(folder)]
    started = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **told, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(PROCESSES)
    ]
    ended = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0] * PROCESSES, [stderr for _, stderr in ended]
    return [stdout.strip().splitlines()[-1] for stdout, _ in ended]


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this PyTorch has no gloo")
def test_two_processes_train_as_one_does_on_larger_batches(tmp_path: Path) -> None:
    expected, alone = run(16)
    said = launch(tmp_path)
    assert said[0] == said[1]
    processes, samples, *losses = said[0].split()
    assert (int(processes), int(samples)) == (2, alone.samples)
    assert [float(loss) for loss in losses] == pytest.approx(alone.losses, rel=1e-4)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(PROCESSES))
    for name, tensor in expected.state_dict().items():
        assert torch.equal(first[name], second[name])
        assert torch.allclose(first[name], tensor, atol=1e-5)
    assert torch.count_nonzero(first["first.weight"][:, ::2]) == 0
    assert len(list((tmp_path / "kept").iterdir())) == 1  # the main process alone writes
