"""Bytes that nobody should have made, against every codec and the packed file: ``python -m bench.fuzz_codecs``.

Each case is bytes of a written file after bit flips, cuts, splices with another, changed whole numbers, or bytes from
nowhere with a true beginning; or a file whose heads agree with each other and claim what is not there. It must give
``ArtifactError``, or arrays; in bounded memory and time. Any other error is a crash, as is a case of more than 256 MiB;
one of more than ten seconds is a hang. The processor's seconds count, so that a busy machine is no fault of the codec.
Half of the cases pass every checksum, which would hide all that lies behind. Writes
``build/bench/compression-fuzz.json``.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import signal
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final
from unittest import mock

import numpy as np

from bench._measured import measured_now
from tauten.artifact import _packed
from tauten.codecs import CODECS, container
from tauten.codecs._entries import DTYPES, has_room, squeezed, write_head
from tauten.codecs._values import Kind
from tauten.codecs._wire import varint
from tauten.codecs.codec import Codec
from tauten.core.tensor import Array
from tauten.errors import ArtifactError

OUT: Final = Path("build/bench/compression-fuzz.json")
SECONDS: Final = 10
MOST_MIB: Final = 256
LIMIT: Final = 8 * 2**20
"""What decoding may hold at most, in bytes of arrays; files of a few hundred bytes are the seeds."""
CODED: Final = ("plain", "zstd", "huffman", "arithmetic")


@dataclass
class Found:
    """What the cases gave."""

    cases: int = 0
    refused: int = 0
    decoded: int = 0
    crashes: int = 0
    hangs: int = 0
    most_mib: float = 0.0
    slowest_ms: float = 0.0
    by_target: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


class Hang(BaseException):
    """A case that took too long; no ``except Exception`` holds it."""


def main() -> None:
    """Run the cases that were asked for, and say what they gave."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    # Beyond what the limit allows, the process fails rather than the machine.
    resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
    found = fuzz(options.cases, options.seed, options.seconds)
    document = {
        **vars(found),
        "most_mib": round(found.most_mib, 1),
        "slowest_ms": round(found.slowest_ms, 1),
        "measured": measured_now(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    print(json.dumps(document))


def fuzz(cases: int, seed: int = 0, seconds: float = 1e9) -> Found:
    """Run ``cases`` cases, or as many as there are seconds for."""
    draw = random.Random(seed)
    targets = _targets()
    found = Found(by_target=dict.fromkeys(targets, 0))
    end = time.monotonic() + seconds
    before = signal.signal(signal.SIGPROF, _hang)
    try:
        while found.cases < cases and time.monotonic() < end:
            name = draw.choice(list(targets))
            seeds, decode = targets[name]
            crafts = name not in ("plain", "packed") and draw.random() < 0.5
            data = _crafted(draw, draw.choice(seeds)) if crafts else _mutated(draw, seeds)
            with mock.patch.object(container, "_checksum", _agree) if draw.random() < 0.5 else nullcontext():
                # Memory is watched in some: watching makes everything slower.
                _one(found, name, data, decode, watched=found.cases % 16 == 0)
    finally:
        signal.signal(signal.SIGPROF, before)
    return found


def _targets() -> dict[str, tuple[list[bytes], Callable[[bytes], Any]]]:
    weights = list(_weights())
    targets: dict[str, tuple[list[bytes], Callable[[bytes], Any]]] = {}
    for name in CODED:
        codec = CODECS.get(name)
        targets[name] = ([codec.encode(arrays) for arrays in weights], partial(_decode, codec))
    files = [{"manifest.json": b'{"name": "x"}' * 9, "weights.coded": seed} for seed in targets["arithmetic"][0]]
    targets["packed"] = ([_packed.write_packed(one) for one in files], _unpack)
    return targets


def _decode(codec: Codec, data: bytes) -> Any:
    return codec.decode(data, LIMIT)


def _unpack(data: bytes) -> Any:
    return {name: entry.read() for name, entry in _packed.read_packed(data, LIMIT).items()}


def _weights() -> Iterator[dict[str, Array]]:
    draw = np.random.default_rng(0)
    levels = np.rint(draw.laplace(0, 1, (12, 18))) * (draw.random((12, 18)) < 0.3)
    yield {
        "a.weight": (levels * 0.25 + 0.0).astype(np.float32),
        "a.bias": (levels[:, 0] * 0.5 + 0.0).astype(np.float32),
    }
    yield {"rows": (levels * draw.integers(3, 99, (12, 1)) * 2.0**-9 + 0.0).astype(np.float32)}
    yield {"shared": draw.normal(0, 1, 9).astype(np.float32)[draw.integers(0, 9, (12, 11))]}
    yield {"raw": draw.normal(0, 1, (5, 9)).astype(np.float32), "half": draw.normal(0, 1, 20).astype(np.float16)}
    yield {"codes": levels.astype(np.int8), "many": draw.integers(0, 255, 70).astype(np.uint8), "flag": np.array(True)}
    yield {
        "conv": (levels * 0.125 + 0.0).astype(np.float32).reshape(6, 4, 3, 3),
        "none": np.zeros((0, 3)),
        "one": np.ones(9),
    }
    yield {"index": np.arange(50), "doubles": draw.normal(0, 1, 7), "big": np.array([2**63], np.uint64)}


def _mutated(draw: random.Random, seeds: list[bytes]) -> bytes:
    data = bytearray(draw.choice(seeds))
    for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
        place = draw.randrange(len(data)) if data else 0
        way = draw.randrange(8)
        if way < 2 and data:
            data[place] ^= 1 << draw.randrange(8)
        elif way == 2 and data:
            data[place] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
        elif way == 3:
            data = data[:place]
        elif way == 4:
            other = draw.choice(seeds)
            data = data[:place] + other[draw.randrange(len(other)) :]
        elif way == 5:
            # A whole number that claims much, where one may stand.
            data[place : place + draw.randrange(3)] = varint(draw.getrandbits(draw.choice((7, 14, 21, 28, 35, 62))))
        elif way == 6:
            data[place:place] = draw.randbytes(draw.randrange(1, 9))
        else:
            # The beginning is true, the rest is noise.
            data = data[: draw.randrange(1, 24)] + draw.randbytes(draw.randrange(120))
    return bytes(data)


def _crafted(draw: random.Random, seed: bytes) -> bytes:
    """A file whose heads agree with each other, and claim more or else than what is packed."""
    parts: list[bytes] = []
    total, previous = 0, b""
    for stored in container.entries(seed):
        head, payload = stored.head, bytearray(stored.payload)
        if draw.random() < 0.5:
            sides = (0, 1, 2, 3, 7, 64, 2 ** draw.randrange(22))
            shape = tuple(draw.choice((side, 2 * side, *sides)) for side in head.shape)
            head = replace(head, shape=shape if has_room(shape) else head.shape)
        if draw.random() < 0.2:
            head = replace(head, coder=draw.randrange(4))
        if draw.random() < 0.1:
            head = replace(head, dtype=np.dtype(draw.choice(DTYPES)))
        if draw.random() < 0.1:
            head = replace(head, joined=not head.joined, checked=head.joined)
        if payload and draw.random() < 0.4:
            payload[draw.randrange(len(payload))] = draw.randrange(256)
        part = write_head(head, previous)
        if head.values.kind is not Kind.CONSTANT and not head.joined:
            part += varint(len(payload)) + payload
        parts.append(part + (bytes(4) if head.checked else b""))
        total, previous = total + head.nbytes, squeezed(head.name)
    return container.MAGIC + bytes([container.VERSION]) + varint(total) + varint(len(parts)) + b"".join(parts)


def _one(found: Found, name: str, data: bytes, decode: Callable[[bytes], Any], *, watched: bool) -> None:
    found.cases += 1
    found.by_target[name] += 1
    if watched:
        tracemalloc.start()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    start = time.process_time()
    try:
        decode(data)
        found.decoded += 1
    except ArtifactError:
        found.refused += 1
    except Hang:
        found.hangs += 1
        found.faults.append(f"{name}: no answer: {data.hex()}"[:2000])
    except Exception as fault:  # noqa: BLE001  whatever comes is what is looked for
        found.crashes += 1
        found.faults.append(f"{name}: {type(fault).__name__}: {fault}: {data.hex()}"[:2000])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        found.slowest_ms = max(found.slowest_ms, (time.process_time() - start) * 1e3)
        if watched:
            mib = tracemalloc.get_traced_memory()[1] / 2**20
            tracemalloc.stop()
            found.most_mib = max(found.most_mib, mib)
            if mib > MOST_MIB:
                found.crashes += 1
                found.faults.append(f"{name}: {mib:.0f} MiB: {data.hex()}"[:2000])


def _agree(arrays: Any, check: int) -> Any:
    """A checksum that equals whichever stands in the file."""
    return mock.ANY


def _hang(signum: int, frame: FrameType | None) -> None:
    raise Hang


if __name__ == "__main__":
    main()
