"""The same artifact with its weights coded otherwise: not one bit of them changes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tauten.artifact.nibbles import fits_nibbles, pack_nibbles
from tauten.artifact.read import Artifact
from tauten.artifact.write import SIZE, write_artifact, write_measures
from tauten.codecs import CODECS
from tauten.core.tensor import Array

_OF_LOADING: Final = ("load_ms", "peak_memory_mib", "startup_ms")
"""What decoding takes part in, and what another codec therefore changes."""
PLAIN: Final = "plain"


@dataclass(frozen=True)
class Coded:
    """Weights as a file: its name and bytes, and what the manifest says of it."""

    name: str
    data: bytes
    four_bit: dict[str, tuple[int, ...]]
    weights_bytes: int


def code_weights(weights: Mapping[str, Array], codec: str, four_bit: frozenset[str] = frozenset()) -> Coded:
    """The file of ``weights``, coded by ``codec``.

    ``four_bit`` names int8 weights whose numbers lie in -8 to 7. As they are, two of them share a byte; a codec that
    looks at numbers gets them one by one, and spends on each what it is worth.

    Raises ``PluginError`` for an unknown codec, ``ConfigError`` for an array that it cannot code.
    """
    coder = CODECS.get(codec)
    packed = four_bit if codec == PLAIN else frozenset[str]()
    arrays = {name: pack_nibbles(array) if name in packed else array for name, array in weights.items()}
    return Coded(
        name=f"weights{coder.suffix}",
        data=coder.encode(arrays),
        four_bit={name: weights[name].shape for name in sorted(packed)},
        weights_bytes=sum(array.nbytes for array in arrays.values()),
    )


def recode(artifact: Artifact, codec: str, path: str | os.PathLike[str]) -> Artifact:
    """Write ``artifact`` with its weights coded by ``codec`` to the folder ``path``, and read it back.

    Graphs, recipe, history and measures stay, for every weight decodes to the bits that were measured. The size is
    told anew; the times of loading and start-up and the peak memory, in which decoding has a part, are left out until
    they are measured again.

    Raises ``PluginError`` for an unknown codec, ``ArtifactError`` where the artifact is damaged or the folder cannot
    be written.
    """
    weights = artifact.weights()
    whole = artifact.manifest.four_bit or {name for name, array in weights.items() if fits_nibbles(array)}
    coded = code_weights(weights, codec, frozenset(whole))
    manifest = artifact.manifest
    files = {**dict(zip(manifest.graphs, artifact.graphs(), strict=True)), coded.name: coded.data}
    fresh = manifest.model_copy(
        update={
            "codec": codec,
            "weights": coded.name,
            "four_bit": coded.four_bit,
            "weights_bytes": coded.weights_bytes,
            "measures": {
                name: measure for name, measure in manifest.measures.items() if name not in (SIZE, *_OF_LOADING)
            },
        }
    )
    made = write_artifact(Path(path), fresh, files)
    size = manifest.measures.get(SIZE)
    # An untouched PyTorch model counts its weights alone, and goes on so.
    return write_measures(made, {}, "weights") if size and size.on == "weights file" else made
