"""Where k-means begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import numpy as np

from tauten.make.passes.compress._kmeans import Clusters, Floats, Line, refine
from tauten.make.passes.compress._optimal import Optimal

Start = Literal["optimal", "linear", "density", "random", "kmeans++"]


def cluster(line: Line, clusters: int, start: Start, seed: int) -> Clusters:
    """At most ``clusters`` clusters of the numbers, by Lloyd's algorithm from ``start`` on."""
    return refine(line, STARTS[start](line, clusters, np.random.default_rng(seed)))


def _linear(line: Line, clusters: int, draw: np.random.Generator) -> Floats:
    """Evenly over the range (Han et al., 2016): the few large numbers get values of their own."""
    return np.linspace(line.points[0], line.points[-1], clusters)


def _density(line: Line, clusters: int, draw: np.random.Generator) -> Floats:
    """Evenly over the numbers in their order (Han et al., 2016): as many of them to each."""
    points, mass = line.places()
    upto = np.cumsum(mass)
    wanted = (np.arange(clusters) + 0.5) / clusters * upto[-1]
    chosen: Floats = points[np.searchsorted(upto, wanted).clip(max=len(points) - 1)]
    return chosen


def _random(line: Line, clusters: int, draw: np.random.Generator) -> Floats:
    """Some of the numbers, by chance (Forgy, 1965)."""
    return line.points[draw.integers(len(line), size=clusters)]


def _plus_plus(line: Line, clusters: int, draw: np.random.Generator) -> Floats:
    """One after the other, each by chance in proportion to its squared distance from those before (Arthur,
    Vassilvitskii, 2007), of at most 4,096 places that stand for all numbers."""
    points, mass = line.places()
    chosen = [float(draw.choice(points, p=mass / mass.sum()))]
    nearest = (points - chosen[0]) ** 2
    for _ in range(clusters - 1):
        upto = np.cumsum(nearest * mass)
        if not upto[-1] > 0:
            break
        place = min(int(np.searchsorted(upto, draw.random() * upto[-1], side="right")), len(points) - 1)
        chosen.append(float(points[place]))
        nearest = np.minimum(nearest, (points - points[place]) ** 2)
    return np.array(chosen)


def _optimal(line: Line, clusters: int, draw: np.random.Generator) -> Floats:
    """The best there is (Wang, Song, 2011) of at most 4,096 places that stand for all numbers: exact up to so many."""
    found = line.kept.get("optimal")
    if not isinstance(found, Optimal):
        found = line.kept["optimal"] = Optimal(*line.places())
    return found.centres(clusters)


STARTS: Final[dict[Start, Callable[[Line, int, np.random.Generator], Floats]]] = {
    "optimal": _optimal,
    "linear": _linear,
    "density": _density,
    "random": _random,
    "kmeans++": _plus_plus,
}
"""By its name, ``(line, clusters, generator) -> centres (clusters,)`` about the line's centre, some perhaps equal."""
