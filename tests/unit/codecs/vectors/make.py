"""Writes the test vectors: ``python -m tests.unit.codecs.vectors.make``. Only after a new version of the format.

Numbers come from a small generator written out here, so that no library's changes them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tauten.codecs import CODECS
from tauten.core.tensor import Arrays

FOLDER = Path(__file__).parent
CODED = ("zstd", "huffman", "arithmetic")


def draws(count: int, seed: int) -> np.ndarray:
    """Numbers from 0 to 1, float64 (count,): the upper bits of a linear congruence (Knuth, MMIX)."""
    state, found = seed, []
    for _ in range(count):
        state = (6364136223846793005 * state + 1442695040888963407) % 2**64
        found.append((state >> 33) / 2**31)
    return np.array(found)


def levels(rows: int, columns: int, share: float, seed: int) -> np.ndarray:
    """Whole numbers from -4 to 4, all but ``share`` of them zero."""
    size = rows * columns
    return (np.floor(draws(size, seed) * 9 - 4) * (draws(size, seed + 1) < share)).reshape(rows, columns) + 0.0


def weights() -> dict[str, Arrays]:
    """What each vector holds, by its name."""
    grid = levels(12, 20, 0.2, 1)
    shared = np.array([-1.5, -0.3, 0.0, 0.1, 0.7, 2.5], np.float32)
    return {
        "layers": {
            "fc1.weight": (grid * 0.0439453125).astype(np.float32),
            "fc1.bias": (levels(1, 12, 1, 3)[0] * 0.03125).astype(np.float32),
            "conv.weight": (levels(4, 27, 0.5, 5) * 0.125).astype(np.float32).reshape(4, 3, 3, 3),
        },
        "ways": {
            "rows": (levels(6, 16, 0.8, 7) * np.array([3, 5, 7, 11, 13, 17])[:, None] * 2.0**-10).astype(np.float32),
            "palette": shared[(draws(90, 9) * 6).astype(int)].reshape(9, 10),
            "codes": levels(8, 9, 0.7, 11).astype(np.int8),
            "raw": (draws(40, 13) - 0.5).astype(np.float32),
            "ones": np.ones((3, 5), np.float16),
            "none": np.zeros((0, 4)),
            "scalar": np.array(7, np.int64),
            "odd": np.array([np.inf, -0.0, 1e-45, 3.0], np.float32),
        },
        "dense": {"fc.weight": (levels(60, 50, 1, 15) * 0.0625).astype(np.float32)},
    }


def main() -> None:
    """Write each as every codec has it, and as safetensors."""
    for name, arrays in weights().items():
        (FOLDER / f"{name}.safetensors").write_bytes(CODECS.get("plain").encode(arrays))
        for codec in CODED:
            (FOLDER / f"{name}.{codec}.bin").write_bytes(CODECS.get(codec).encode(arrays))


if __name__ == "__main__":
    main()
