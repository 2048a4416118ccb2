"""PyTorch's translations to ONNX are read once a process, and each export has a table of its own."""

from __future__ import annotations

import pytest

from tauten.make.lower._torchlib import translations_kept

registration = pytest.importorskip("torch.onnx._internal.exporter._registration")
Table = registration.ONNXRegistry


def test_a_second_table_costs_no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    with translations_kept():
        first = Table.from_torchlib(opset_version=18)
        monkeypatch.setattr(registration.onnxscript_apis, "get_torchlib_ops", lambda: pytest.fail("read again"))
        second = Table.from_torchlib(opset_version=18)
    assert second.functions == first.functions
    assert second.opset_version == 18


def test_what_one_export_adds_the_next_does_not_see() -> None:
    with translations_kept():
        table = Table.from_torchlib()
        table.functions["aten::relu"].append("mine")
        table.functions["mine::new"] = []
        after = Table.from_torchlib().functions
    assert "mine" not in after["aten::relu"]
    assert "mine::new" not in after


def test_afterwards_others_find_pytorch_as_it_was() -> None:
    before = Table.__dict__["from_torchlib"]
    with pytest.raises(ZeroDivisionError), translations_kept(), translations_kept():
        raise ZeroDivisionError
    assert Table.__dict__["from_torchlib"] is before
