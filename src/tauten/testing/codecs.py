"""What every codec must hold. Needs hypothesis.

Each function of ``CHECKS`` takes a codec and raises ``AssertionError`` where it breaks its contract::

    @pytest.mark.parametrize("check", CHECKS)
    def test_codec(check):
        check(MY_CODEC)
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Mapping
from typing import Any, Final, get_args

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tauten.codecs.codec import Codec
from tauten.core.tensor import Array, DType
from tauten.errors import ArtifactError
from tauten.testing._hold import hold

MOST_BYTES: Final = 64 * 2**20
"""What decoding a few hostile bytes may allocate."""
_EXAMPLES: Final = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)

_names = st.text(st.characters(codec="utf-8"), max_size=20).filter(lambda name: name != "__metadata__")


def _arrays(order: str = "=") -> st.SearchStrategy[Array]:
    """Arrays of every dtype that a model may hold, of up to four dimensions, empty ones too."""
    dtypes = st.sampled_from([np.dtype(name).newbyteorder(order) for name in get_args(DType)])
    shapes = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
    return dtypes.flatmap(lambda dtype: npst.arrays(dtype, shapes))


weights = st.dictionaries(_names, _arrays(), max_size=5)
"""Named arrays as a weights file may hold them."""


def same(first: Mapping[str, Array], second: Mapping[str, Array]) -> bool:
    """Equal names, dtypes, shapes and bits (so that NaN equals itself, and -0.0 does not equal 0.0)."""
    return set(first) == set(second) and all(
        array.dtype == second[name].dtype
        and array.shape == second[name].shape
        and array.tobytes() == second[name].tobytes()
        for name, array in first.items()
    )


def names_its_files(codec: Codec) -> None:
    """``suffix`` ends a plain file name."""
    hold(codec.suffix.startswith(".") and codec.suffix[1:].replace(".", "").isalnum(), f"suffix {codec.suffix!r}")


def gives_back_what_it_got(codec: Codec) -> None:
    """Names, dtypes, shapes and bits come back."""

    @_EXAMPLES
    @given(weights)
    def check(arrays: dict[str, Array]) -> None:
        back = codec.decode(codec.encode(arrays))
        hold(same(arrays, back), f"got {_about(back)} for {_about(arrays)}")

    check()


def gives_back_views_and_foreign_byte_orders(codec: Codec) -> None:
    """Arrays that are strided or of the other byte order come back with their values, in the native order."""

    @_EXAMPLES
    @given(_arrays(">"))
    def check(array: Array) -> None:
        given_arrays = {"foreign": array, "turned": array.T, "flipped": array[::-1] if array.ndim else array}
        expected = {name: value.astype(value.dtype.newbyteorder("=")) for name, value in given_arrays.items()}
        back = codec.decode(codec.encode(given_arrays))
        hold(same(expected, back), f"got {_about(back)} for {_about(given_arrays)}")

    check()


def leaves_its_arguments_alone(codec: Codec) -> None:
    """Encoding changes neither values nor byte order of what it was given."""

    @_EXAMPLES
    @given(_arrays(">"))
    def check(array: Array) -> None:
        before, dtype, shape = array.tobytes(), array.dtype, array.shape
        codec.encode({"x": array})
        hold((array.tobytes(), array.dtype, array.shape) == (before, dtype, shape), f"encode changed {dtype}{shape}")

    check()


def gives_equal_bytes_for_equal_weights(codec: Codec) -> None:
    """The order that arrays come in leaves no trace."""

    @_EXAMPLES
    @given(weights)
    def check(arrays: dict[str, Array]) -> None:
        turned = {name: arrays[name].copy() for name in reversed(list(arrays))}
        hold(codec.encode(arrays) == codec.encode(turned), f"two encodings of {_about(arrays)} differ")

    check()


def gives_arrays_that_can_be_changed(codec: Codec) -> None:
    """Decoded arrays own their memory: one can be written to, and no other changes by it."""
    back = codec.decode(codec.encode({"a": np.zeros(4, np.float32), "b": np.zeros(4, np.float32)}))
    hold(all(array.flags.writeable for array in back.values()), "a decoded array cannot be written to")
    np.asarray(back["a"]).fill(1)
    hold(not back["b"].any(), "two decoded arrays share memory")


def refuses_what_it_did_not_make(codec: Codec) -> None:
    """Any bytes give an ``ArtifactError``, or arrays that it could have been given; nothing else is raised."""

    @_EXAMPLES
    @given(st.binary(max_size=400))
    def check(data: bytes) -> None:
        _attack(codec, data)

    check()
    hold(_attack(codec, b"") is None, "expected ArtifactError for no bytes at all")


def survives_damage(codec: Codec) -> None:
    """Its own bytes cut, lengthened or changed anywhere: ``ArtifactError`` or arrays, within bounded memory."""

    @_EXAMPLES
    @given(weights, st.data())
    def check(arrays: dict[str, Array], data: st.DataObject) -> None:
        good = codec.encode(arrays)
        place = data.draw(st.integers(0, len(good) - 1))
        flipped = bytearray(good)
        flipped[place] ^= data.draw(st.integers(1, 255))
        for bad in (bytes(flipped), good[:place], good + b"\0", good[place:] + good[:place]):
            _attack(codec, bad)

    check()


def keeps_to_a_limit(codec: Codec) -> None:
    """Arrays of more bytes than ``limit_bytes`` are refused, and those of just as many are not."""
    arrays: dict[str, Array] = {"a": np.zeros(300, np.float32), "b": np.arange(100, dtype=np.int8)}
    data = codec.encode(arrays)
    hold(same(codec.decode(data, 1300), arrays), "arrays of as many bytes as the limit did not come back")
    try:
        codec.decode(data, 1299)
    except ArtifactError:
        return
    hold(False, "arrays of more bytes than the limit were decoded")


def _attack(codec: Codec, data: bytes) -> Mapping[str, Array] | None:
    tracemalloc.start()
    try:
        found = codec.decode(data)
    except ArtifactError:
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        hold(peak <= MOST_BYTES, f"{len(data)} bytes made decode allocate {peak} bytes")
    hold(same(found, codec.decode(codec.encode(found))), "decode gave arrays that encode cannot have been given")
    return found


def _about(arrays: Mapping[str, Array]) -> str:
    return str({name: f"{array.dtype}{array.shape}" for name, array in arrays.items()})


CHECKS: Final[tuple[Callable[[Codec], Any], ...]] = (
    names_its_files,
    gives_back_what_it_got,
    gives_back_views_and_foreign_byte_orders,
    leaves_its_arguments_alone,
    gives_equal_bytes_for_equal_weights,
    gives_arrays_that_can_be_changed,
    refuses_what_it_did_not_make,
    survives_damage,
    keeps_to_a_limit,
)
