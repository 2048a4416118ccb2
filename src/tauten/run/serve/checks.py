"""What a server looks at where models begin to take requests: threads against cores."""

from __future__ import annotations


def thread_warnings(models: int, instances: int, threads: int, cores: int, fronts: int = 1) -> list[str]:
    """What to change where more threads compute at once than there are cores; nothing where all is well.

    ``instances`` of each model compute at once, with ``threads`` threads each, in each of ``fronts`` servers that share
    the cores.

    >>> thread_warnings(models=1, instances=2, threads=1, cores=2)
    []
    """
    if fronts > cores:
        return [f"{fronts} fronts are more than the {cores} cores: they will wait for each other; use --fronts {cores}"]
    own = cores // fronts
    there = f"{own} cores" if fronts == 1 else f"{own} of the {cores} cores for each of the {fronts} fronts"
    found = []
    if threads > own:
        found.append(
            f"each call computes with {threads} threads and there are {there}: threads will wait for each other; "
            f"use --threads {own}"
        )
    elif instances * threads > own:
        found.append(
            f"{instances} instances with {threads} threads each are more than there are cores ({there}): calls will "
            f"wait for each other; use --instances {max(1, own // threads)}, or --threads {max(1, own // instances)}"
        )
    if models > 1 and models * instances * threads > 2 * own:
        found.append(
            f"{models} models, with {instances} instances of {threads} threads each, share {there}: where all "
            "are asked at once each takes longer; fewer --instances keep latencies even"
        )
    return found
