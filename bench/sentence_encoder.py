"""MiniLM with real weights, no labels, no training: level low, at most one point of cosine lost."""

from __future__ import annotations

from bench._results import write
from bench._runs import figures, run
from tauten.core.target import Budget

SEEDS = [0]


def main() -> None:
    results = run("examples/minilm.py:task", Budget(max_drop=1.0), "low", SEEDS)
    write("sentence_encoder", "python -m bench.sentence_encoder", SEEDS, figures(results))


if __name__ == "__main__":
    main()
