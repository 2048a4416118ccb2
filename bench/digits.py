"""The demo's job: a residual CNN on scikit-learn's digits, at most 0.5 points lost, three seeds."""

from __future__ import annotations

from bench._results import write
from bench._runs import figures, run
from tauten.core.target import Budget

SEEDS = [0, 1, 2]


def main() -> None:
    results = run("examples/digits.py:task", Budget(max_drop=0.5), "medium", SEEDS)
    write("digits", "python -m bench.digits", SEEDS, figures(results))


if __name__ == "__main__":
    main()
