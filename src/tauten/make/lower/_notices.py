"""Keeps what exporters and quantizers tell of themselves from those who only wanted a model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_NOTICES: Final = ("torch.utils._pytree", "torchao", "executorch")


@contextmanager
def without_notices() -> Iterator[None]:
    """Without what the exporter and torchao tell of themselves.

    They warn of deprecated calls that they make, of CUDA libraries that they do not find, and of classes that they
    register twice. What goes wrong with a model they raise.
    """
    before = {name: logging.getLogger(name).level for name in _NOTICES}
    for name in _NOTICES:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning, UserWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
