"""A picture in, the digit on it out: what runs before and after the model of ``digits.py``.

Usage: ``tauten serve build/digits/best --handler examples/digits_handler.py``, then with a picture of 8 by 8 pixels::

    curl http://127.0.0.1:8000/v2/models/digits/infer \
        --header "Inference-Header-Content-Length: 0" --data-binary @picture.pgm
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tauten import BytesSpec, TensorSpec

Array = npt.NDArray[np.generic]

SIDE = 8

inputs = [BytesSpec(name="picture", shape=("batch",))]
outputs = [
    BytesSpec(name="digit", shape=("batch",)),
    TensorSpec(name="probability", shape=("batch",)),
]


def before_each(sample: dict[str, bytes]) -> dict[str, Array]:
    """The bytes of a PGM file to brightness, ``(1, 8, 8)`` from 0 to 1. What is wrong with them the client is told."""
    head = sample["picture"].split(maxsplit=4)[:4]
    if len(head) < 4 or head[0] not in (b"P2", b"P5"):
        raise ValueError("expected a picture in PGM format")
    width, height, brightest = map(int, head[1:])
    if (width, height) != (SIDE, SIDE) or not 0 < brightest < 256:
        raise ValueError(f"expected {SIDE} by {SIDE} pixels of one byte, got {width} by {height} up to {brightest}")
    if head[0] == b"P2":
        pixels = np.array([int(number) for number in sample["picture"].split()[4:]])
    else:
        pixels = np.frombuffer(sample["picture"][-SIDE * SIDE :], np.uint8)
    if len(pixels) != SIDE * SIDE:
        raise ValueError(f"expected {SIDE * SIDE} pixels, got {len(pixels)}")
    return {"image": pixels.reshape(1, SIDE, SIDE) / brightest}


def after(outputs: dict[str, Array]) -> dict[str, object]:
    """Scores, ``(batch, 10)``, to the best digit and how probable it is."""
    scores = np.asarray(outputs["output"], np.float64)
    odds = np.exp(scores - scores.max(1, keepdims=True))
    return {
        "digit": [str(best) for best in scores.argmax(1)],
        "probability": odds.max(1) / odds.sum(1),
    }


def example() -> dict[str, list[bytes]]:
    """What the server tries before it opens its port."""
    return {"picture": [b"P5 8 8 16\n" + bytes(SIDE * SIDE)]}
