"""MNIST, 60,000 training images: at most 0.5 points lost, level medium. Needs TAUTEN_DATA or a network."""

from __future__ import annotations

from bench._results import write
from bench._runs import figures, run
from tauten.core.target import Budget

SEEDS = [0]


def main() -> None:
    results = run("examples/mnist.py:task", Budget(max_drop=0.5), "medium", SEEDS)
    write("mnist", "python -m bench.mnist", SEEDS, figures(results))


if __name__ == "__main__":
    main()
