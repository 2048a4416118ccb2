"""The inference server beside its peers: ``python -m bench.serving``."""

from bench.serving.tables import table

__all__ = ["table"]
