"""Image models of ``transformers``, from configurations: small, with random weights, nothing is downloaded."""

from __future__ import annotations

from typing import Any

from torch import nn

from tauten.core.tensor import TensorSpec
from tauten.testing.zoo.entry import ZooModel

IMAGE = (TensorSpec(name="pixel_values", shape=("batch", 3, 32, 32)),)
LABELS = 5


def _make(family: str, head: str = "ForImageClassification", **settings: Any) -> nn.Module:
    """``transformers`` is imported here, so that the package can be imported without it."""
    import transformers

    config = getattr(transformers, f"{family}Config")(num_labels=LABELS, **settings)
    made: nn.Module = getattr(transformers, f"{family}{head}")(config)
    return made


def resnet() -> nn.Module:
    return _make("ResNet", embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic")


def resnet_bottleneck() -> nn.Module:
    return _make("ResNet", embedding_size=8, hidden_sizes=[16, 32], depths=[2, 2], layer_type="bottleneck")


def mobilenet_v1() -> nn.Module:
    return _make("MobileNetV1", depth_multiplier=0.25)


def mobilenet_v2() -> nn.Module:
    return _make("MobileNetV2", depth_multiplier=0.25, finegrained_output=True)


def efficientnet() -> nn.Module:
    return _make(
        "EfficientNet", width_coefficient=0.25, depth_coefficient=0.5, hidden_dim=320, kernel_sizes=[3, 3, 5],
        in_channels=[32, 16, 24], out_channels=[16, 24, 40], strides=[1, 2, 2], num_block_repeats=[1, 2, 2],
        expand_ratios=[1, 4, 4], depthwise_padding=[],
    )  # fmt: skip


def regnet() -> nn.Module:
    return _make("RegNet", embedding_size=8, hidden_sizes=[16, 32], depths=[2, 2], groups_width=4, layer_type="y")


def convnext() -> nn.Module:
    return _make("ConvNext", num_stages=2, hidden_sizes=[16, 32], depths=[2, 2], layer_scale_init_value=0.5)


def vit() -> nn.Module:
    return _make("ViT", "ForImageClassification", **_ENCODER)


def deit() -> nn.Module:
    return _make("DeiT", "ForImageClassificationWithTeacher", **_ENCODER)


def swin() -> nn.Module:
    return _make("Swin", image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4)


def segformer() -> nn.Module:
    return _make(
        "Segformer", "ForSemanticSegmentation", num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1],
        hidden_sizes=[16, 32], patch_sizes=[7, 3], strides=[4, 2], num_attention_heads=[2, 4], mlp_ratios=[2, 2],
        decoder_hidden_size=16,
    )  # fmt: skip


_ENCODER = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}

VISION: tuple[ZooModel, ...] = tuple(
    ZooModel(make.__name__, make, IMAGE)
    for make in (
        resnet, resnet_bottleneck, mobilenet_v1, mobilenet_v2, efficientnet, regnet, convnext, vit, deit, swin,
        segformer,
    )
)  # fmt: skip
