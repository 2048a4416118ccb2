"""What a figure was taken with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tauten.core import environment as told

X86 = """processor\t: 0
model name\t: Some CPU
flags\t\t: fpu sse4_2 avx2 avx512f avx512_vnni avx512_bf16 amx_tile amx_int8

processor\t: 1
model name\t: Other CPU
flags\t\t: fpu
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd asimdhp asimddp sve i8mm\n"


@pytest.mark.parametrize(
    ("text", "instructions"),
    [
        (X86, "amx_int8 avx2 avx512_bf16 avx512_vnni avx512f"),
        (ARM, "asimddp asimdhp i8mm sve"),
        ("flags : fpu\n", ""),
        ("no such line", None),
        (None, None),
    ],
)
def test_the_instructions_that_decide_what_is_fast_are_told(
    text: str | None, instructions: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(told, "_CPUINFO", path)
    found = told.environment()
    assert found.get("instructions") == instructions
    assert found["cpu"]
    if text is X86:
        assert found["cpu"] == "Some CPU"
