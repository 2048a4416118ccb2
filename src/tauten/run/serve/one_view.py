"""Figures of several servers put together, as if they were one server's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

OF_A_PROCESS: Final = ("process_", "python_")
_LATEST: Final = "last_inference"


def merged_metrics(texts: Iterable[tuple[int, bytes]]) -> bytes:
    """Metrics in Prometheus' text format, added up by name and labels; what is of a process gets its number as a label.

    >>> one, other = b"# TYPE a gauge\\na 1\\nprocess_b 2\\n", b"# TYPE a gauge\\na 3\\n"
    >>> print(merged_metrics([(0, one), (1, other)]).decode(), end="")
    # TYPE a gauge
    a 4.0
    process_b{process="0"} 2.0
    """
    lines: dict[str, float | None] = {}
    for number, text in texts:
        for line in text.decode().splitlines():
            if line.startswith("#"):
                lines.setdefault(line, None)
                continue
            name, _, value = line.rpartition(" ")
            if name.startswith(OF_A_PROCESS):
                plain, brace, labels = name.partition("{")
                name = f'{plain}{{process="{number}"' + (f",{labels}" if brace else "}")
            lines[name] = (lines.get(name) or 0.0) + float(value)
    return _grouped(lines)


def merged_statistics(documents: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Statistics documents as one: counts and times added up by model and version, and by the rows of a batch."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for document in documents:
        for model in document["model_stats"]:
            key = (model["name"], model["version"])
            found[key] = _added(found[key], model) if key in found else dict(model)
    return {"model_stats": list(found.values())}


def merged_index(indices: Sequence[Sequence[Mapping[str, str]]]) -> list[dict[str, str]]:
    """What the repositories of all servers hold: a model is READY where it is in all of them."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for index in indices:
        for entry in index:
            key = (entry["name"], entry.get("version", ""))
            known = found.get(key)
            if known is None or known["state"] == "READY":
                found[key] = dict(entry)
    ready = {(name, version) for name, version in found if version}
    for index in indices:
        there = {(entry["name"], entry.get("version", "")) for entry in index}
        for key in ready - there:
            if found[key]["state"] == "READY":
                found[key].update(state="UNAVAILABLE", reason="not in all servers")
    # What one server names without a version, since it does not serve it, others name with theirs.
    versioned = {name for name, _ in ready}
    return [entry for (name, version), entry in found.items() if version or name not in versioned]


def _added(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Two objects of the same kind, their numbers added up, whatever is in them."""
    both = {**other, **one}
    for key in one.keys() & other.keys():
        mine, its = one[key], other[key]
        if isinstance(mine, Mapping):
            both[key] = _added(mine, its)
        elif key == _LATEST:
            both[key] = max(mine, its)
        elif isinstance(mine, list):
            both[key] = _by_rows([*mine, *its])
        elif isinstance(mine, int):
            both[key] = mine + its
    return {key: both[key] for key in (*one, *(key for key in other if key not in one))}


def _by_rows(batches: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for batch in batches:
        rows = batch["batch_size"]
        known = found.get(rows)
        found[rows] = dict(batch) if known is None else {**_added(known, batch), "batch_size": rows}
    return [found[rows] for rows in sorted(found)]


def _grouped(lines: dict[str, float | None]) -> bytes:
    """The lines, those of one family together, as the format asks for."""
    families: dict[str, list[str]] = {}
    family = ""
    for name, value in lines.items():
        if value is None:
            family = name.split(" ")[2] if name.count(" ") > 1 else name
            families.setdefault(family, []).append(name)
        else:
            plain = name.partition("{")[0]
            # A histogram's samples are named after their family, with an ending.
            stems = (plain, *(plain.removesuffix(end) for end in ("_bucket", "_count", "_sum", "_total", "_created")))
            own = next((stem for stem in stems if stem in families), family)
            families.setdefault(own, []).append(f"{name} {value}")
    return "".join(f"{line}\n" for members in families.values() for line in members).encode()
