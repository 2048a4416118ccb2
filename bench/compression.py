"""How small files get: LeNets trained towards a few KB, a larger CNN, a sentence encoder, and the coder's speed.

Each part is a program of its own, which leaves its figures in ``build/bench``; this one runs those that have left none
and writes them together. Every size is that of a written file, and every answer is that of a fresh process which has
decoded it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench._latency_models import CACHE
from bench._measured import measured_as_all, read_document, tell_measured
from bench._results import write

COMMAND = "python -m bench.compression"
PARTS = ("lenet", "cnn", "minilm", "codec")
NETS = {
    "lenet_300_100": ("LeNet-300-100, MNIST", 266_610),
    "lenet_5": ("LeNet-5, MNIST", 431_080),
    "larger_cnn": ("a larger CNN, Fashion-MNIST", 1_030_578),
}
"""Names and parameters."""
LEAVE = {
    "lenet": ("lenet_300_100", "lenet_5"),
    "cnn": ("larger_cnn",),
    "minilm": ("minilm",),
    "codec": ("codec",),
    "fuzz": ("fuzz",),
}
"""Which figures each part leaves."""


def main() -> None:
    for part in PARTS:
        if not _left(part).is_file():
            subprocess.run([sys.executable, "-m", f"bench._compress_{part}"], check=True)
    collect()


def collect() -> None:
    """The figures file, from what the parts left; a part that left nothing keeps the figures that it has there."""
    earlier = read_document("compression")
    figures = {name: {"measured": measured_as_all(earlier), **kept} for name, kept in earlier["figures"].items()}
    for part, names in LEAVE.items():
        if _left(part).is_file():
            document = json.loads(_left(part).read_text())
            found = document if part == "lenet" else {names[0]: document.get(names[0], document)}
            figures |= {name: found[name] for name in names if name in found}
    ordered = [name for names in LEAVE.values() for name in names if name in figures]
    write("compression", COMMAND, (), {name: figures[name] for name in ordered})


def _left(part: str) -> Path:
    return CACHE / f"compression-{part}.json"


def table(figures: dict[str, Any]) -> str:
    """What there is of: networks that were trained, the sentence encoder, the coder's speed, and hostile bytes."""
    parts = [make(figures) for make in (_trained, _encoder, _speed, _hostile, _measured)]
    return "\n\n".join(part for part in parts if part)


def _measured(figures: dict[str, Any]) -> str:
    told = {"codec": "the coder's speed", "fuzz": "hostile files", "minilm": "MiniLM"}
    names = {name: NETS[name][0] if name in NETS else told[name] for name in figures}
    return "\n".join(tell_measured({names[key]: one["measured"] for key, one in figures.items() if "measured" in one}))


def _trained(figures: dict[str, Any]) -> str:
    nets = {name: figures[name] for name in NETS if name in figures}
    if not nets:
        return ""
    lines = ["| | " + " | ".join(NETS[name][0] for name in nets) + " |", "|---" * (len(nets) + 1) + "|"]
    lines.append("| float32, bytes | " + " | ".join(f"{4 * NETS[name][1]:,}" for name in nets) + " |")

    def row(label: str, tell: Callable[[dict[str, Any]], str]) -> None:
        lines.append(f"| {label} | " + " | ".join(tell(net) for net in nets.values()) + " |")

    def spread(key: str, digits: int) -> Callable[[dict[str, Any]], str]:
        def tell(net: dict[str, Any]) -> str:
            between = f" (spread {net[f'{key}_spread']:,.{digits}f})" if len(net["seeds"]) > 1 else ""
            return f"{net[key]:,.{digits}f}{between}"

        return tell

    row("**file, bytes**", spread("bytes", 0))
    row("**times smaller**", spread("ratio", 0))
    row("test error, %", spread("test_error", 2))
    row("test error of the dense network, %", spread("dense_test_error", 2))
    row("the same weights by zlib-9, bytes", lambda net: f"{net['coders']['zlib_9']:,.0f}")
    row("by zstd-22, bytes", lambda net: f"{net['coders']['zstd_22']:,.0f}")
    row("by `huffman`, bytes", lambda net: f"{net['coders']['huffman']:,.0f}")
    row("CPU seconds, one core", spread("cpu_seconds", 0))
    row("seeds", lambda net: ", ".join(map(str, net["seeds"])))
    return "\n".join(lines)


def _encoder(figures: dict[str, Any]) -> str:
    if "minilm" not in figures:
        return ""
    found = figures["minilm"]
    lines = ["| MiniLM | share of float32 bytes | mean cosine | least cosine |", "|---|---|---|---|"]
    chosen = f"| **`compress.rate_distortion`, chosen on validation** | **{found['share_of_fp32']:.1%}** "
    lines.append(chosen + f"| **{found['mean_cosine']:.4f}** | {found['min_cosine']:.4f} |")
    for row in found["beside"]:
        test = row["test"]
        lines.append(
            f"| {row['way']} | {row['share_of_fp32']:.1%} | {test['mean_cosine']:.4f} | {test['min_cosine']:.4f} |"
        )
    return "\n".join(lines)


def _speed(figures: dict[str, Any]) -> str:
    if "codec" not in figures:
        return ""
    lines = ["| weights | kind | bytes | order-0 entropy | zstd-22 | encode, MB/s | decode, MB/s |", "|---" * 7 + "|"]
    lines += [
        f"| {row['millions']} million | {row['kind']} | {row['bytes']:,} | {row['entropy_bytes']:,} "
        f"| {_bytes(row, 'zstd22_bytes')} | {row['encode_mb_s']:.0f} | {row['decode_mb_s']:.0f} |"
        for row in figures["codec"]["rows"]
    ]
    return "\n".join(lines)


def _bytes(row: dict[str, Any], key: str) -> str:
    """Nothing where it was not measured, since it takes minutes."""
    return f"{row[key]:,}" if key in row else ""


def _hostile(figures: dict[str, Any]) -> str:
    if "fuzz" not in figures:
        return ""
    found = figures["fuzz"]
    return (
        f"Of {found['cases']:,} files that were damaged or made up, {found['crashes']:,} ended in anything but an "
        f"`ArtifactError` or arrays, and {found['hangs']:,} took too long; the most memory was "
        f"{found['most_mib']:.0f} MiB, the longest time {found['slowest_ms']:.0f} ms."
    )


if __name__ == "__main__":
    main()
