"""The tools that Tauten's speed is compared with, each used as its own documentation says.

A peer prepares its files in a folder (which is timed), and loads them for a number of threads and a batch.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench._latency_models import Subject
from tauten.core.tensor import Array, Arrays

Call = Callable[[Arrays], Array]
"""One batch by name to the first output."""
CALIBRATION_BATCH = 8
_LARGEST = 64


class Peer(ABC):
    """One tool's way. ``folder`` is its own, and kept between ``prepare`` and ``load``."""

    def __init__(self, subject: Subject, folder: Path) -> None:
        self.subject = subject
        self.folder = folder
        self.names = [spec.name for spec in subject.inputs]

    def prepare(self) -> None:
        """What is done once, such as quantizing."""

    @abstractmethod
    def load(self, threads: int, batch: int) -> Call:
        """The model, ready to answer batches of that size."""

    def calibration(self) -> Iterator[Arrays]:
        """Batches of the calibration samples."""
        samples = self.subject.calibrate
        count = len(samples[self.names[0]])
        for at in range(0, count, CALIBRATION_BATCH):
            yield {name: array[at : at + CALIBRATION_BATCH] for name, array in samples.items()}

    def example(self, batch: int) -> tuple[torch.Tensor, ...]:
        """A batch as PyTorch takes it."""
        return tuple(torch.from_numpy(self.subject.calibrate[name][:batch].copy()) for name in self.names)

    @property
    def is_transformer(self) -> bool:
        """Whether the model has layer normalization, which some tools want to be told."""
        return any(isinstance(module, torch.nn.LayerNorm) for module in self.subject.module.modules())


class Eager(Peer):
    """PyTorch, one operation after the other."""

    def load(self, threads: int, batch: int) -> Call:
        torch.set_num_threads(threads)
        return self._call(self.subject.module)

    def _call(self, module: Callable[..., Any]) -> Call:
        def call(arrays: Arrays) -> Array:
            with torch.inference_mode():
                return module(*(torch.from_numpy(arrays[name]) for name in self.names)).numpy()

        return call


class Compiled(Eager):
    """``torch.compile`` with weights frozen, compiled anew for each number of threads and each batch size."""

    def load(self, threads: int, batch: int) -> Call:
        import torch._inductor.config as inductor

        inductor.freezing = True
        if threads != torch.get_num_threads():
            # What was compiled runs with as many threads as there were then.
            torch._dynamo.reset()
        torch.set_num_threads(threads)
        call = self._call(torch.compile(self.compiled(), dynamic=False))
        call({name: array[:batch] for name, array in self.subject.calibrate.items()})
        return call

    def compiled(self) -> Callable[..., Any]:
        """What is compiled."""
        return self.subject.module


class TorchaoPt2e(Compiled):
    """torchao's export quantization to int8 for x86, compiled by inductor with weights frozen."""

    def prepare(self) -> None:
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        dim = torch.export.Dim("batch", min=1, max=_LARGEST)
        shapes = tuple({0: dim} for _ in self.names)
        exported = torch.export.export(
            self.subject.module, self.example(2), dynamic_shapes=shapes, strict=True
        ).module()
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(exported, quantizer)
        with torch.no_grad():
            for arrays in self.calibration():
                prepared(*(torch.from_numpy(arrays[name]) for name in self.names))
        self.converted = convert_pt2e(prepared)

    def compiled(self) -> Callable[..., Any]:
        return self.converted


class OrtFloat(Peer):
    """PyTorch's exporter and ONNX Runtime with its own defaults."""

    file = "model.onnx"

    def prepare(self) -> None:
        export_onnx(self)

    def load(self, threads: int, batch: int) -> Call:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        path = self.folder / self.file
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda arrays: session.run(None, arrays)[0]


class OrtStatic(OrtFloat):
    """ONNX Runtime's static quantizer: pre-processing, U8 activations, S8 weights a channel."""

    file = "static.onnx"

    def prepare(self) -> None:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        class Reader(CalibrationDataReader):
            def __init__(self, batches: Iterator[Arrays]) -> None:
                self.batches = batches

            def get_next(self) -> Arrays | None:
                return next(self.batches, None)

        quantize_static(
            prepared_onnx(self),
            self.folder / self.file,
            Reader(self.calibration()),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
        )


class OrtDynamic(OrtFloat):
    """ONNX Runtime's dynamic quantizer on matrix products, with S8 weights a channel."""

    file = "dynamic.onnx"

    def prepare(self) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            prepared_onnx(self),
            self.folder / self.file,
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
        )


class Olive(OrtFloat):
    """Olive's static int8 workflow for ONNX Runtime on a CPU: U8 activations, S8 weights a channel."""

    file = "olive.onnx"

    def prepare(self) -> None:
        import olive

        np.savez(self.folder / "samples.npz", **self.subject.calibrate)
        script = self.folder / "olive_samples.py"
        script.write_text(_OLIVE_SCRIPT)
        loaded = {"type": "tauten_bench_samples", "params": {"path": str(self.folder / "samples.npz")}}
        work = self.folder / "olive"
        olive.run(
            {
                "input_model": {"type": "ONNXModel", "model_path": str(export_onnx(self))},
                "data_configs": [
                    {
                        "name": "samples",
                        "user_script": str(script),
                        "load_dataset_config": loaded,
                        "pre_process_data_config": {"type": "skip_pre_process"},
                        "post_process_data_config": {"type": "skip_post_process"},
                        "dataloader_config": {"type": "no_auto_batch_dataloader"},
                    }
                ],
                "passes": {
                    "quantize": {
                        "type": "OnnxStaticQuantization",
                        "data_config": "samples",
                        "quant_format": "QDQ",
                        "per_channel": True,
                        "precision": "int8",
                        "activation_type": "uint8",
                    }
                },
                "output_dir": str(work / "out"),
                "cache_dir": str(work / "cache"),
            }
        )
        (found,) = (work / "out").rglob("*.onnx")
        found.rename(self.folder / self.file)


_OLIVE_SCRIPT = """
import numpy as np
from olive.data.registry import Registry


class Samples:
    def __init__(self, path):
        with np.load(path) as arrays:
            self.arrays = {name: arrays[name] for name in arrays.files}

    def __len__(self):
        return len(next(iter(self.arrays.values()))) // 8

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError
        return {name: array[8 * index : 8 * index + 8] for name, array in self.arrays.items()}, 0


@Registry.register_dataset()
def tauten_bench_samples(path, **others):
    return Samples(path)
"""


class OpenvinoFloat(Peer):
    """OpenVINO's own conversion and defaults (bfloat16 where the processor has it), for any batch."""

    fixed = False
    file = "model.xml"

    def prepare(self) -> None:
        import openvino

        openvino.save_model(self.convert(), self.folder / self.file, compress_to_fp16=False)

    def convert(self) -> Any:
        import openvino

        example = self.example(2)
        made = openvino.convert_model(self.subject.module, example_input=example if len(example) > 1 else example[0])
        for port, spec, tensor in zip(made.inputs, self.subject.inputs, example, strict=True):
            sizes = [-1 if isinstance(dim, str) else dim for dim in spec.shape]
            port.get_node().set_partial_shape(openvino.PartialShape([-1, *sizes[1:]]))
            port.get_tensor().set_names({spec.name})
            del tensor
        made.validate_nodes_and_infer_types()
        return made

    def load(self, threads: int, batch: int) -> Call:
        import openvino

        core = openvino.Core()
        model = core.read_model(self.folder / self.file)
        if self.fixed:
            samples = self.subject.calibrate
            model.reshape({name: openvino.PartialShape([batch, *samples[name].shape[1:]]) for name in self.names})
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        return lambda arrays: request.infer(arrays, share_inputs=True)[0]


class OpenvinoFloatFixed(OpenvinoFloat):
    """The same, compiled for one batch size."""

    fixed = True


class OpenvinoNncf(OpenvinoFloat):
    """OpenVINO with NNCF's post-training int8, for any batch."""

    file = "int8.xml"

    def prepare(self) -> None:
        import nncf
        import openvino

        nncf.set_log_level(logging.ERROR)
        data = nncf.Dataset(list(self.calibration()))
        kind = nncf.ModelType.TRANSFORMER if self.is_transformer else None
        made = nncf.quantize(self.convert(), data, model_type=kind, subset_size=len(list(self.calibration())))
        openvino.save_model(made, self.folder / self.file, compress_to_fp16=False)


class OpenvinoNncfFixed(OpenvinoNncf):
    """The same, compiled for one batch size."""

    fixed = True


def export_onnx(peer: Peer) -> Path:
    """``model.onnx`` in the peer's folder, from PyTorch's exporter, for any batch."""
    path = peer.folder / "model.onnx"
    dim = torch.export.Dim("batch", min=1, max=_LARGEST)
    torch.onnx.export(
        peer.subject.module,
        peer.example(2),
        path,
        dynamo=True,
        verbose=False,
        input_names=peer.names,
        output_names=["answer"],
        dynamic_shapes=tuple({0: dim} for _ in peer.names),
        external_data=False,
    )
    return path


def prepared_onnx(peer: Peer) -> Path:
    """The exported model after the runtime's own preparation for quantization."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = peer.folder / "prepared.onnx"
    quant_pre_process(export_onnx(peer), path, skip_symbolic_shape=True)
    return path


PEERS: dict[str, type[Peer]] = {
    "PyTorch eager": Eager,
    "torch.compile": Compiled,
    "ONNX Runtime fp32": OrtFloat,
    "ONNX Runtime static int8": OrtStatic,
    "ONNX Runtime dynamic int8": OrtDynamic,
    "Olive static int8": Olive,
    "OpenVINO bf16": OpenvinoFloat,
    "OpenVINO bf16, fixed batch": OpenvinoFloatFixed,
    "OpenVINO + NNCF int8": OpenvinoNncf,
    "OpenVINO + NNCF int8, fixed batch": OpenvinoNncfFixed,
    "torchao pt2e int8 + inductor": TorchaoPt2e,
}
