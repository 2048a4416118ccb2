"""One command a claim: ``python -m bench.NAME`` writes ``bench/results/NAME.json``. ``python -m bench`` lists them.

A benchmark is not a test: nothing here gates anything. Comparisons run side by side in one run and are told as ratios,
with spread, seeds, versions and the machine beside them.
"""
