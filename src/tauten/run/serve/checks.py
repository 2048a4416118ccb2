"""What a server looks at before it starts: threads against cores."""

from __future__ import annotations


def thread_warnings(models: int, instances: int, threads: int, cores: int) -> list[str]:
    """What to change where more threads compute at once than there are cores; nothing where all is well.

    ``instances`` of each model compute at once, with ``threads`` threads each.

    >>> thread_warnings(models=1, instances=2, threads=1, cores=2)
    []
    """
    found = []
    if threads > cores:
        found.append(
            f"each call computes with {threads} threads and there are {cores} cores: threads will wait for each other; "
            f"use --threads {cores}"
        )
    elif instances * threads > cores:
        found.append(
            f"{instances} instances with {threads} threads each are more than the {cores} cores: calls will wait for "
            f"each other; use --instances {max(1, cores // threads)}, or --threads {max(1, cores // instances)}"
        )
    if models > 1 and models * instances * threads > 2 * cores:
        found.append(
            f"{models} models, with {instances} instances of {threads} threads each, share {cores} cores: where all "
            "are asked at once each takes longer; fewer --instances keep latencies even"
        )
    return found
