"""Every pass that is found, against the passes' contract; and the contract against passes that break it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from tauten.errors import PassError
from tauten.make.model.pass_ import Change, Pass
from tauten.make.passes import PASSES
from tauten.testing import passes


@pytest.mark.parametrize("check", passes.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", PASSES.names())
def test_pass_holds_the_contract(name: str, check: Callable[[Pass, Path], None], tmp_path: Path) -> None:
    check(passes.example(PASSES.get(name)), tmp_path)


@pytest.mark.parametrize("name", PASSES.names())
def test_pass_is_named_after_its_file(name: str) -> None:
    assert PASSES.get(name).name == name


@dataclass(frozen=True)
class Restless(Pass):
    """Draws from a generator that nobody seeds."""

    name: ClassVar[str] = "test.restless"

    def __call__(self, model, context):
        with torch.no_grad():
            next(model.module.parameters()).normal_(generator=torch.Generator().manual_seed(torch.seed() % 2**31))
        return Change(model.module)


@dataclass(frozen=True)
class Reaching(Pass):
    """Changes the reference."""

    name: ClassVar[str] = "test.reaching"

    def __call__(self, model, context):
        with torch.no_grad():
            next(context.reference.parameters()).add_(1)
        return Change(model.module)


@dataclass(frozen=True)
class Lenient(Pass):
    """Takes a parameter of any type, and leaves it out where it writes itself."""

    name: ClassVar[str] = "test.lenient"
    depth: object = 3

    def to_json(self):
        return {"pass": self.name}

    def __call__(self, model, context):
        return Change(model.module)


@dataclass(frozen=True)
class Picky(Pass):
    """Refuses modules without a part of that name."""

    name: ClassVar[str] = "test.picky"
    part: str = "blocks"

    def __call__(self, model, context):
        if not hasattr(model.module, self.part):
            raise PassError(f"expected {self.part}")
        return Change(model.module)


@dataclass(frozen=True)
class Careless(Pass):
    """Takes for granted what only the second task has."""

    name: ClassVar[str] = "test.careless"

    def __call__(self, model, context):
        return Change(model.module.train(model.module.blocks is None))


@pytest.mark.parametrize("check", passes.CHECKS, ids=lambda check: check.__name__)
def test_a_pass_for_transformers_alone_holds_the_contract(check: Callable[[Pass, Path], None], tmp_path: Path) -> None:
    check(Picky(), tmp_path)


def test_a_pass_that_fails_is_not_tried_on_another_task(tmp_path: Path) -> None:
    with pytest.raises(PassError, match="AttributeError"):
        passes.keeps_the_border(Careless(), tmp_path)


@pytest.mark.parametrize(
    ("step", "check"),
    [
        (Picky(part="none_has_this"), passes.keeps_the_border),
        (Restless(), passes.repeats_itself),
        (Reaching(), passes.leaves_the_model_alone),
        (Lenient(), passes.refuses_parameters_that_do_not_fit),
        (Lenient(depth=5), passes.round_trips_through_json),
    ],
)
def test_contract_catches(step: Pass, check: Callable[[Pass, Path], None], tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check(step, tmp_path)
