"""PyTorch's quantizer for x86 under its compiler, and what the weights that it folds are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from tauten.make.lower._export import module_path, strip
from tauten.make.model.model import QuantizationPlan

_PARTS = ("weight", "weight_scale", "weight_zero_point")


def x86_quantizer(plan: QuantizationPlan, activations: Callable[..., Any], weights: Callable[..., Any]) -> Any:
    """Convolutions and linear layers with what is fused to them; linear layers alone where each call finds ranges."""
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    dynamic = plan.method == "dynamic"
    config = get_default_x86_inductor_quantization_config(is_dynamic=dynamic)
    config = replace(config, weight=replace(config.weight, observer_or_fake_quant_ctr=weights))
    quantizer = X86InductorQuantizer()
    if dynamic:
        return quantizer.set_function_type_qconfig(torch.nn.functional.linear, replace(config, output_activation=None))
    ranges = replace(config.input_activation, observer_or_fake_quant_ctr=activations)
    return quantizer.set_global(replace(config, input_activation=ranges, output_activation=ranges))


def weight_names(program: ExportedProgram) -> dict[str, str]:
    """What a quantized weight, its scales and its zero points shall be called: after the layer that multiplies by it.

    Folding names them by number, which tells nobody which layer takes how many bytes.
    """
    places = [node for node in program.graph.nodes if node.op == "placeholder"]
    targets = {
        node: spec.target or spec.arg.name
        for node, spec in zip(places, program.graph_signature.input_specs, strict=True)
    }
    called: dict[str, str] = {}
    taken = {strip(name) for name in targets.values()}
    for node in program.graph.nodes:
        if "dequantize_per_channel" not in str(node.target):
            continue
        owner = next((path for user in node.users if (path := _owner(user))), "")
        for part, argument in zip(_PARTS, node.args, strict=False):
            name = f"{owner}.{part}" if owner else part
            if isinstance(argument, fx.Node) and argument in targets and targets[argument] not in called:
                # The float weight of that name is still in the program; nothing reads it, so it is not written.
                free = name if part == "weight" or name not in taken else f"{name}_"
                if free in called.values():
                    free = strip(targets[argument])
                called[targets[argument]] = free
    return called


def _owner(node: fx.Node) -> str:
    return module_path(node).partition("@")[0]
