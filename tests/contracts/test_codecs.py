"""Every codec that is found, against the codecs' contract; and the contract against codecs that break it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tauten.codecs import CODECS
from tauten.codecs.plain import PLAIN
from tauten.errors import ArtifactError
from tauten.testing import codecs


@pytest.mark.parametrize("check", codecs.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", CODECS.names())
def test_codec_holds_the_contract(name: str, check: Callable[[object], None]) -> None:
    check(CODECS.get(name))


class Forgetful:
    """Loses the shape of scalars, as ``np.ascontiguousarray`` does."""

    suffix = ".bad"

    def encode(self, arrays):
        return PLAIN.encode({name: np.ascontiguousarray(array) for name, array in arrays.items()})

    def decode(self, data):
        return PLAIN.decode(data)


class InOrderOfArrival(Forgetful):
    def encode(self, arrays):
        return repr([(name, array.dtype.str, array.shape, array.tolist()) for name, array in arrays.items()]).encode()


class Trusting(Forgetful):
    """Allocates what the first bytes ask for."""

    def encode(self, arrays):
        data = PLAIN.encode(arrays)
        return len(data).to_bytes(8, "little") + data

    def decode(self, data):
        if len(data) < 8:
            raise ArtifactError("short")
        np.empty(min(int.from_bytes(data[:8], "little"), 2**28), np.uint8)
        return PLAIN.decode(data[8:])


class Swapping(Forgetful):
    """Turns the caller's own bytes around."""

    def encode(self, arrays):
        for array in arrays.values():
            if not array.dtype.isnative:
                array.byteswap(inplace=True)
        return b""


class Careless(Forgetful):
    """Lets the errors of what it is built on through."""

    def decode(self, data):
        int.from_bytes(data, "little") % (len(data) - len(data))
        return {}


@pytest.mark.parametrize(
    ("codec", "check"),
    [
        (Forgetful(), codecs.gives_back_what_it_got),
        (InOrderOfArrival(), codecs.gives_equal_bytes_for_equal_weights),
        (Trusting(), codecs.survives_damage),
        (Swapping(), codecs.leaves_its_arguments_alone),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_contract_catches(codec: Forgetful, check: Callable[[object], None]) -> None:
    with pytest.raises(AssertionError):
        check(codec)


def test_contract_lets_no_other_error_pass() -> None:
    with pytest.raises(ZeroDivisionError):
        codecs.refuses_what_it_did_not_make(Careless())
