"""Token merging: what is merged, what the rest of the network sees of it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tauten
from tauten.errors import PassError, RecipeError
from tauten.make.layers.choice import watch_choices
from tauten.make.layers.token_merging import MergingBlocks
from tauten.make.model.apply import apply
from tauten.make.model.build import build, to_model
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.model.run import forward
from tauten.make.passes.dynamic.token_merging import TokenMerging
from tauten.testing.tiny import TransformerBlock, VisionTransformer, encoder_task, vision_transformer_task
from tauten.testing.zoo import transformers_vision

SPEC = tauten.TensorSpec(name="image", shape=("batch", 1, 8, 8))


def merged(module: nn.Module, **parameters: object) -> tuple[Model, Model, dict]:
    """The model before and after, and the notes."""
    torch.manual_seed(1)
    task = replace(vision_transformer_task(), model=module.eval())
    before = to_model(task)
    after = apply(TokenMerging(**parameters), before, Context(task, build(task)))
    return before, after, after.history[-1].notes


def outputs(model: Model, image: np.ndarray) -> dict[str, np.ndarray]:
    return forward(model.module, model.inputs, model.outputs, {"image": image})


def images(count: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 1, 8, 8)).astype(np.float32)


def blocks(count: int = 3, width: int = 8) -> list[nn.Module]:
    torch.manual_seed(0)
    return [TransformerBlock(width, 2).eval() for _ in range(count)]


def chain(listed: list[nn.Module], x: torch.Tensor) -> torch.Tensor:
    for block in listed:
        x = block(x)
    return x


class Pooled(VisionTransformer):
    """Averages over the tokens instead of reading the class token."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = self.patches(image).flatten(2).transpose(1, 2) + self.places[:, 1:]
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden).mean(1))


def test_each_block_gets_as_many_tokens_as_the_notes_say() -> None:
    _, after, notes = merged(VisionTransformer(depth=4), share=0.25)
    assert notes["rows"] == [
        {
            "blocks": [f"blocks.{index}" for index in range(4)],
            "tokens": [17, 13, 10, 8],
            "merged": [4, 3, 2, 0],
            "protected": [0],
        }
    ]
    seen = []
    for block in after.module.blocks[0].blocks:
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    outputs(after, images(2))
    assert seen == [17, 13, 10, 8]


def test_a_number_of_tokens_counts_before_a_share_and_never_more_than_half_go() -> None:
    assert merged(VisionTransformer(depth=3), share=0.5, r=3)[2]["rows"][0]["merged"] == [3, 3, 0]
    assert merged(VisionTransformer(depth=4), r=9)[2]["rows"][0]["merged"] == [8, 4, 2, 0]


@pytest.mark.parametrize("parameters", [{"share": 0.0}, {"r": 0}])
def test_without_merging_nothing_changes(parameters: dict[str, float]) -> None:
    before, after, notes = merged(VisionTransformer(), **parameters)
    assert np.array_equal(outputs(before, images(4))["output"], outputs(after, images(4))["output"])
    assert notes["similarity"] == {"output": 1.0}


@settings(max_examples=20, deadline=None)
@given(pairs=st.integers(1, 9), seed=st.integers(0, 999), protected=st.integers(0, 2))
def test_merging_equal_tokens_changes_nothing(pairs: int, seed: int, protected: int) -> None:
    torch.manual_seed(seed)
    x = torch.cat([torch.randn(2, protected, 8), torch.randn(2, pairs, 8).repeat_interleave(2, 1)], dim=1)
    merging = MergingBlocks(blocks(), (pairs, 0, 0), range(protected))
    torch.testing.assert_close(merging(x), chain(blocks(), x), rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.permutations(range(5)), st.sampled_from([(), (0,), (0, 1), (4, 9)]))
def test_samples_do_not_see_each_other(seed: int, order: list[int], protected: tuple[int, ...]) -> None:
    torch.manual_seed(seed)
    x = torch.randn(5, 11, 8)
    merging = MergingBlocks(blocks(), (3, 2, 0), protected).eval()
    with torch.no_grad(), watch_choices() as margins:
        together = merging(x)
        alone = torch.cat([merging(x[row : row + 1]) for row in order])
    clear = torch.stack(margins[:2]).amin(0)[order] > 1e-5
    torch.testing.assert_close(alone[clear], together[order][clear], rtol=1e-4, atol=1e-4)


def test_a_token_becomes_the_average_of_those_it_stands_for_by_size() -> None:
    x = torch.randn(1, 9, 8, generator=torch.Generator().manual_seed(0))
    merging = MergingBlocks([nn.Identity(), nn.Identity(), nn.Identity()], (2, 3, 0), (0,))
    out = merging(x)
    assert torch.equal(out[:, 0], x[:, 0])
    values, group = out[0].unique(dim=0, return_inverse=True)
    assert len(values) == 9 - 5
    for number, value in enumerate(values):
        torch.testing.assert_close(value, x[0, group == number].mean(0))
    torch.testing.assert_close(out.mean(1), x.mean(1))


def test_the_most_similar_tokens_are_merged() -> None:
    angle = torch.tensor([0.0, 0.1, 2.0, 2.9, 4.0, 5.3])
    x = torch.stack([angle.cos(), angle.sin()], dim=1)[None]
    out = MergingBlocks([nn.Identity(), nn.Identity()], (1, 0), ())(x)
    torch.testing.assert_close(out[0, :2], x[0, :2].mean(0).expand(2, 2))
    assert torch.equal(out[0, 2:], x[0, 2:])


@pytest.mark.parametrize("protected", [(0,), (0, 1), (7,), (2, 5)])
def test_protected_tokens_are_never_merged(protected: tuple[int, ...]) -> None:
    x = torch.randn(3, 8, 4).repeat_interleave(1, 1)
    x[:, protected] = x[:, [3]]
    out = MergingBlocks([nn.Identity()] * 3, (len(x[0]) // 4, 1, 0), protected)(x)
    assert torch.equal(out[:, protected], x[:, protected])
    assert not torch.equal(out, x)


def test_a_network_that_averages_its_tokens_is_treated_and_has_none_protected() -> None:
    before, after, notes = merged(Pooled(depth=3), share=0.2)
    assert notes["rows"][0]["protected"] == []
    assert notes["rows"][0]["tokens"] == [16, 13, 10]
    assert 0.9 < notes["similarity"]["output"] < 1
    assert not np.array_equal(outputs(before, images(3))["output"], outputs(after, images(3))["output"])


class Written(nn.Module):
    """Attention by two products and a softmax; ``flat`` lays the heads into the batch."""

    def __init__(self, softmax: Callable[[torch.Tensor], torch.Tensor], flat: bool = False) -> None:
        super().__init__()
        self.inner, self.softmax, self.flat = TransformerBlock(16, 2), softmax, flat

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        made = [getattr(self.inner, name)(x) for name in ("query", "key", "value")]
        query, key, value = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in made)
        scores = query @ key.transpose(2, 3) * scale
        weights = self.softmax(scores.flatten(0, 1)).unflatten(0, (-1, 2)) if self.flat else self.softmax(scores)
        return x + self.inner.mix((weights @ value).transpose(1, 2).flatten(2))


class Tupled(TransformerBlock):
    """Returns a tuple, of which the rest is read by nobody."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super().forward(x), x.mean(1)


class Net(VisionTransformer):
    """The tiny transformer with blocks of another make; ``extra`` is handed to each."""

    def __init__(self, make: Callable[[int], nn.Module], *extra: object) -> None:
        super().__init__(depth=1)
        self.blocks = nn.ModuleList(make(index) for index in range(3))
        self.extra = extra

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = torch.cat([self.first.expand(image.shape[0], -1, -1), self.tokens(image)], dim=1) + self.places
        for block in self.blocks:
            out = block(hidden, *self.extra)
            hidden = out[0] if isinstance(out, tuple) else out
        return self.head(self.norm(hidden)[:, 0])

    def tokens(self, image: torch.Tensor) -> torch.Tensor:
        return self.patches(image).flatten(2).transpose(1, 2)


FITTING = {
    "functional softmax": lambda _: Written(lambda scores: nn.functional.softmax(scores, dim=-1)),
    "softmax of a tensor": lambda _: Written(lambda scores: scores.softmax(-1)),
    "softmax module": lambda _: Written(nn.Softmax(dim=-1)),
    "softmax with the heads in the batch": lambda _: Written(lambda scores: torch.softmax(scores, 2), flat=True),
    "multi-head attention": lambda _: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
    "tuple": lambda _: Tupled(16, 2),
}


@pytest.mark.parametrize("make", FITTING.values(), ids=FITTING.keys())
def test_blocks_of_any_make_are_treated(make: Callable[[int], nn.Module]) -> None:
    torch.manual_seed(0)
    before, after, notes = merged(Net(make), share=0.25)
    assert notes["rows"][0]["tokens"] == [17, 13, 10]
    answers = [outputs(model, images(5))["output"] for model in (before, after)]
    assert answers[0].shape == answers[1].shape
    assert not np.array_equal(*answers)


class Placed(nn.Module):
    """Adds a table over the tokens' places."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.table = TransformerBlock(16, 2), nn.Parameter(torch.randn(17, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x + self.table)


class Fixed(TransformerBlock):
    """Has the number of tokens written in its code."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.view(-1, 17, 16))


class Causal(nn.Module):
    """Attends to what comes before alone."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + nn.functional.scaled_dot_product_attention(self.mix(x), x, x, is_causal=True)


class Summed(nn.Module):
    """Sums over tokens without a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.mix(x)).sum(1, keepdim=True)


class Skipping(Net):
    """Reads the first block's tokens again at the end."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        first = self.blocks[0](self.tokens(image))
        return self.head(self.blocks[2](self.blocks[1](first)).mean(1) + first.mean(1))


class Scaled(Net):
    """Changes what goes from block to block."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = self.tokens(image)
        for block in self.blocks:
            hidden = block(hidden) * 0.5
        return self.head(hidden.mean(1))


class Numbered(Net):
    """Hands each block another number."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = self.tokens(image)
        for index, block in enumerate(self.blocks):
            hidden = block(hidden, 0.1 * index)
        return self.head(hidden.mean(1))


class Shared(Net):
    """Calls its blocks twice."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(chain([*self.blocks, *self.blocks], self.tokens(image)).mean(1))


def like(_: int) -> nn.Module:
    return TransformerBlock(16, 2)


REFUSED = {
    "depend on the places": (Net, lambda _: Causal(), ()),
    "depend on the places of their tokens": (Net, lambda _: Placed(), ()),
    "do not run with another number": (Net, lambda _: Fixed(16, 2), ()),
    "cannot be weighted|can be weighted": (Net, lambda _: Summed(), ()),
    "in another way than one block after the other": (Skipping, like, ()),
    "changes what one block gives": (Scaled, like, ()),
    "differ from block to block": (Numbered, lambda _: Written(nn.Softmax(dim=-1)), ()),
    "called 2 times": (Shared, like, ()),
}


@pytest.mark.parametrize(("reason", "case"), REFUSED.items(), ids=REFUSED.keys())
def test_what_does_not_fit_is_refused_with_the_reason(reason: str, case: tuple) -> None:
    kind, make, extra = case
    torch.manual_seed(0)
    with pytest.raises(PassError, match=rf"blocks.*{reason}"):
        merged(kind(make, *extra))


def test_convolutions_are_refused() -> None:
    stages = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)), nn.Flatten())
    with pytest.raises(PassError, match=r"expected tokens \(batch, tokens, width\), its blocks get \(3, 4, 3, 3\)"):
        merged(nn.Sequential(*stages, nn.Linear(36, 4)))
    with pytest.raises(PassError, match="the model has none"):
        merged(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))


def test_what_is_refused_stays_as_it_was_beside_what_is_treated() -> None:
    class Both(VisionTransformer):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(*(nn.Conv2d(1, 1, 3, padding=1) for _ in range(2)))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return super().forward(self.stem(image))

    _, after, notes = merged(Both(), share=0.25)
    assert list(notes["refused"]) == ["stem"]
    assert type(after.module.stem[0]) is nn.Conv2d
    assert [row["blocks"][0] for row in notes["rows"]] == ["blocks.0"]


def test_a_number_of_tokens_that_varies_is_refused() -> None:
    task = encoder_task()
    with pytest.raises(PassError, match="length"):
        apply(TokenMerging(), to_model(task), Context(task, build(task)))


def test_what_merges_already_is_refused() -> None:
    _, after, _ = merged(VisionTransformer(depth=3), share=0.25)
    task = vision_transformer_task()
    with pytest.raises(PassError, match="changes what one block gives"):
        apply(TokenMerging(), after, Context(task, build(task)))


@pytest.mark.parametrize("parameters", [{"share": -0.1}, {"share": 0.6}, {"r": -1}])
def test_parameters_out_of_range(parameters: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=next(iter(parameters))):
        TokenMerging(**parameters)


def test_choices_tell_how_near_they_were() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 4)
    x[1] = torch.cat([x[1, :1], x[1, 1:2].repeat(7, 1)])
    with watch_choices() as margins:
        MergingBlocks([nn.Identity(), nn.Identity()], (2, 0), ())(x)
    assert margins[0].shape == (2,)
    assert margins[0][0] > 1e-3
    assert margins[0][1] < 1e-6


def zoo_task(name: str) -> tauten.Task:
    pytest.importorskip("transformers")
    found = next(model for model in transformers_vision.VISION if model.name == name)
    data = [found.example(4)]
    return tauten.Task(name=name, model=found.build(), inputs=found.inputs, calibrate=data, validate=data)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "protected"), [("vit", [0]), ("deit", [0, 1])])
def test_transformers_of_others_are_treated_and_exported(name: str, protected: list[int], tmp_path) -> None:
    task = zoo_task(name)
    model = apply(TokenMerging(share=0.25), to_model(task), Context(task, build(task)))
    (row,) = model.history[-1].notes["rows"]
    assert row["protected"] == protected
    assert row["tokens"] == [16 + len(protected), 12 + len(protected)]
    tauten.save(model, tmp_path / name, task=task)


def test_windows_with_relative_places_are_refused() -> None:
    task = zoo_task("swin")
    with pytest.raises(PassError, match=r"layers\.0\.blocks: its blocks depend on the places of their tokens"):
        apply(TokenMerging(), to_model(task), Context(task, build(task)))


@pytest.mark.slow
def test_a_mask_that_only_the_exporter_makes_is_left_out(tmp_path) -> None:
    class Exported(Net):
        """Hands its blocks a mask of ones while it is exported, and nothing else."""

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            self.extra = (torch.ones(17, 17, dtype=torch.bool) if torch.compiler.is_exporting() else None,)
            return super().forward(image)

    class Masked(TransformerBlock):
        def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            if mask is not None:
                raise ValueError("a mask for another number of tokens")
            return super().forward(x)

    _, after, notes = merged(Exported(lambda _: Masked(16, 2)), share=0.25)
    assert after.module.blocks[0].absent == (0,)
    assert notes["rows"][0]["tokens"] == [17, 13, 10]
    tauten.save(after, tmp_path / "merged", task=vision_transformer_task())


def test_lowered_to_onnx_it_answers_alike_at_any_batch(tmp_path) -> None:
    _, after, _ = merged(VisionTransformer(depth=4), share=0.25)
    task = vision_transformer_task()
    engine = tauten.load(tauten.save(after, tmp_path / "merged", task=task).path)
    for batch in (1, 2, 7):
        image = images(batch, seed=batch)
        with watch_choices() as margins:
            expected = outputs(after, image)["output"]
        clear = torch.stack(margins).amin(0).numpy() > 2e-5
        assert clear.sum() > batch / 2
        np.testing.assert_allclose(engine({"image": image})["output"][clear], expected[clear], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_lowered_to_int8_and_recovered_it_runs(tmp_path) -> None:
    _, after, _ = merged(VisionTransformer(depth=3), share=0.25)
    task = vision_transformer_task()
    trained = tauten.recover(after, task=task, epochs=1)
    assert any(
        not torch.equal(a, b) for a, b in zip(trained.module.parameters(), after.module.parameters(), strict=True)
    )
    planned = tauten.quantize(trained, "post_training", task=task)
    engine = tauten.load(tauten.save(planned, tmp_path / "int8", task=task).path)
    assert np.isfinite(engine({"image": images(3)})["output"]).all()
