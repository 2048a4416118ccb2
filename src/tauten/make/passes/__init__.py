"""What makes a model smaller or faster: one file a pass.

::

    Pass
    ├── prune/      structured · depth · magnitude · gradual
    ├── distill/    recover · progressive
    ├── dynamic/    early_exit · gates · token_merging
    ├── quantize/   post_training · dynamic · weight_only · quantization_aware
    ├── compress/   rate · rate_distortion · share · low_rank
    └── device/     half · in_place · channels_last · micro_batches

A pass is named after its folder and file: ``prune.structured``.
"""

from __future__ import annotations

from tauten.core.registry import Registry
from tauten.make.model.pass_ import Pass

PASSES: Registry[type[Pass]] = Registry("pass", "tauten.make.passes", besides=("prune.criteria",))
