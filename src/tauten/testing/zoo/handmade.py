"""Architectures that ``transformers`` has not: each as plain as it can be, with the parts that make it hard to prune.

A model that takes a dict of tensors is wrapped so that its ``forward`` takes the tensors by name (``DictInput``):
``torch.export`` and every engine know inputs by name and order.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tauten.core.tensor import TensorSpec
from tauten.testing.zoo.entry import ZooModel

IMAGE = (TensorSpec(name="image", shape=("batch", 3, 16, 16)),)
TOKENS = (TensorSpec(name="tokens", shape=("batch", 12), dtype="int64"),)
SERIES = (TensorSpec(name="series", shape=("batch", 10, 6)),)
PAIR = (TensorSpec(name="image", shape=("batch", 3, 16, 16)), TensorSpec(name="facts", shape=("batch", 6)))


def conv(inside: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without bias, a batch norm and a ReLU."""
    made = nn.Conv2d(inside, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(made, nn.BatchNorm2d(out), nn.ReLU())


class Classifier(nn.Module):
    """A body of convolutions, the mean over space, and a linear layer."""

    def __init__(self, body: nn.Module, channels: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(channels, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.body(image).mean((2, 3)))
        return scores


class DenseLayer(nn.Module):
    """Huang et al. (2017): what it makes stands beside all that was made before."""

    def __init__(self, inside: int, growth: int) -> None:
        super().__init__()
        self.narrow = nn.Sequential(nn.BatchNorm2d(inside), nn.ReLU(), nn.Conv2d(inside, 2 * growth, 1, bias=False))
        self.widen = nn.Sequential(
            nn.BatchNorm2d(2 * growth), nn.ReLU(), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.widen(self.narrow(x))], 1)


def densenet() -> nn.Module:
    transition = nn.Sequential(nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 10, 1), nn.AvgPool2d(2))
    return Classifier(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), *(DenseLayer(8 + 4 * place, 4) for place in range(3)), transition,
            *(DenseLayer(10 + 4 * place, 4) for place in range(2)), nn.BatchNorm2d(18), nn.ReLU(),
        ),
        18,
    )  # fmt: skip


class UNet(nn.Module):
    """Ronneberger et al. (2015): up by transposed convolutions, beside what was there on the way down."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = conv(3, 8), conv(8, 12), conv(12, 16)
        self.up2, self.mix2 = nn.ConvTranspose2d(16, 12, 2, 2), conv(24, 12)
        self.up1, self.mix1 = nn.ConvTranspose2d(12, 8, 2, 2), conv(16, 8)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        first = self.down1(image)
        second = self.down2(functional.max_pool2d(first, 2))
        low = self.bottom(functional.max_pool2d(second, 2))
        x = self.mix2(torch.cat([second, self.up2(low)], 1))
        mask: torch.Tensor = self.out(self.mix1(torch.cat([first, self.up1(x)], 1)))
        return mask


class ShuffleUnit(nn.Module):
    """Ma et al. (2018): half of the channels pass as they are, then the halves are interleaved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        depthwise = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.branch = nn.Sequential(conv(half, half, 1), depthwise, nn.BatchNorm2d(half), conv(half, half, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept, used = x.chunk(2, 1)
        x = torch.cat([kept, self.branch(used)], 1)
        batch, channels, height, width = x.shape
        return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)


def shufflenet() -> nn.Module:
    return Classifier(nn.Sequential(conv(3, 16, stride=2), ShuffleUnit(16), ShuffleUnit(16), conv(16, 24, 1)), 24)


class GroupedShuffle(nn.Module):
    """Zhang et al. (2018): grouped 1x1 convolutions with the channels interleaved between them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter, self.shuffle = conv(channels, channels, 1, groups=4), nn.ChannelShuffle(4)
        self.leave = conv(channels, channels, 1, groups=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(x + self.leave(self.shuffle(self.enter(x))))


def shufflenet_grouped() -> nn.Module:
    return Classifier(nn.Sequential(conv(3, 16, stride=2), GroupedShuffle(16), GroupedShuffle(16)), 16)


class Tagger(nn.Module):
    """A label a token: words, two layers of LSTM in both directions, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 12)
        self.lstm = nn.LSTM(12, 10, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(20, 6)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        labels: torch.Tensor = self.head(self.lstm(self.words(tokens))[0])
        return labels


class Regressor(nn.Module):
    """A number for a series: the last state of a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.gru, self.head = nn.Linear(6, 12), nn.GRU(12, 14, batch_first=True), nn.Linear(14, 1)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        _, last = self.gru(torch.relu(self.enter(series)))
        number: torch.Tensor = self.head(last[-1])
        return number


class TwoInputs(nn.Module):
    """A picture and facts about it, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.read = nn.Sequential(conv(3, 8, stride=2), conv(8, 12)), nn.Linear(6, 10)
        self.mix, self.head = nn.Linear(22, 14), nn.Linear(14, 5)

    def forward(self, image: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
        both = torch.cat([self.see(image).mean((2, 3)), torch.relu(self.read(facts))], 1)
        scores: torch.Tensor = self.head(functional.elu(self.mix(both)))
        return scores


class TwoOutputs(nn.Module):
    """A class for the picture and a box in it, from one body."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 8), conv(8, 12, stride=2), conv(12, 16, stride=2))
        self.scores = nn.Linear(16, 5)
        self.box = nn.Sequential(nn.Flatten(), nn.Linear(16 * 16, 12), nn.ReLU(), nn.Linear(12, 4), nn.Sigmoid())

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.body(image)
        return {"scores": self.scores(x.mean((2, 3))), "box": self.box(x)}


class OfDict(nn.Module):
    """A model whose ``forward`` takes a dict, as those of many collate functions do."""

    def __init__(self) -> None:
        super().__init__()
        self.model = TwoInputs()

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"scores": self.model(batch["image"], batch["facts"])}


class DictInput(nn.Module):
    """Takes tensors by name and passes them on as a dict."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor, facts: torch.Tensor) -> dict[str, torch.Tensor]:
        answer: dict[str, torch.Tensor] = self.model({"image": image, "facts": facts})
        return answer


class Residual(nn.Module):
    """Two convolutions around which the input is added."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = x + self.second(torch.relu(self.first(x)))
        return made


def super_resolution() -> nn.Module:
    """Lim et al. (2017): no norms, and twice the size by a shuffle of pixels."""
    blocks = [Residual(nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)) for _ in range(2)]
    up = [nn.Conv2d(12, 24, 3, padding=1), nn.PixelShuffle(2)]
    return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), *blocks, *up, nn.Conv2d(6, 3, 3, padding=1))


def group_norm_resnet() -> nn.Module:
    """Group norms of few large groups (positions go) and of many small ones (whole groups go)."""

    def block(channels: int, groups: int) -> nn.Module:
        first, second = (
            nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.GroupNorm(groups, channels))
            for _ in range(2)
        )
        return Residual(first, second)

    enter = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(2, 12), nn.ReLU())
    widen = nn.Sequential(nn.Conv2d(12, 16, 3, stride=2, padding=1), nn.GroupNorm(8, 16), nn.ReLU())
    return Classifier(nn.Sequential(enter, block(12, 2), widen, block(16, 8)), 16)


def norm_free_resnet() -> nn.Module:
    """Brock et al. (2021), in part: scaled residuals in the place of norms."""

    class Scaled(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = x + 0.2 * self.second(functional.gelu(self.first(x / 1.1)))
            return made

    def block() -> nn.Module:
        return Scaled(nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1))

    return Classifier(nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), block(), block(), nn.GELU()), 12)


def style_transfer() -> nn.Module:
    """Johnson et al. (2016) with instance norms (Ulyanov et al., 2016): mirrored borders, up by interpolation."""

    def step(inside: int, out: int, stride: int = 1, *, affine: bool = True) -> list[nn.Module]:
        made = nn.Conv2d(inside, out, 3, stride)
        return [nn.ReflectionPad2d(1), made, nn.InstanceNorm2d(out, affine=affine), nn.ReLU()]

    inner = Residual(nn.Sequential(*step(16, 16, affine=False)), nn.Sequential(*step(16, 16)[:3]))
    up = nn.Upsample(scale_factor=2, mode="bilinear")
    return nn.Sequential(*step(3, 8), *step(8, 16, 2), inner, up, *step(16, 8), nn.Conv2d(8, 3, 1), nn.Sigmoid())


class SqueezeExcite(nn.Module):
    """Hu et al. (2018): each channel is scaled by what is seen of all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.narrow, self.widen = conv(channels, channels), nn.Linear(channels, 6), nn.Linear(6, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        gate = torch.sigmoid(self.widen(torch.relu(self.narrow(y.mean((2, 3))))))
        made: torch.Tensor = x + y * gate[:, :, None, None]
        return made


def squeeze_excite() -> nn.Module:
    return Classifier(nn.Sequential(conv(3, 12), SqueezeExcite(12), conv(12, 16, stride=2), SqueezeExcite(16)), 16)


def separable() -> nn.Module:
    """Depthwise and 1x1 convolutions with a learned slope a channel, as in networks for faces."""

    def step(inside: int, out: int, stride: int = 1) -> list[nn.Module]:
        depthwise = nn.Conv2d(inside, inside, 3, stride, 1, groups=inside, bias=False)
        pointwise = nn.Conv2d(inside, out, 1, bias=False)
        return [depthwise, nn.BatchNorm2d(inside), nn.PReLU(inside), pointwise, nn.BatchNorm2d(out), nn.PReLU(out)]

    return Classifier(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *step(8, 12), *step(12, 16, 2)), 16)


class Autoencoder(nn.Module):
    """Down by pixel unshuffle and grouped convolutions, up by grouped and depthwise transposed ones."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 4, 1), nn.PixelUnshuffle(2), conv(16, 12, groups=4), conv(12, 16))
        self.up = nn.ConvTranspose2d(16, 12, 3, 2, 1, 1, groups=2)
        self.smooth, self.out = nn.ConvTranspose2d(12, 12, 3, padding=1, groups=12), nn.Conv2d(12, 3, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        picture: torch.Tensor = self.out(functional.leaky_relu(self.smooth(self.up(self.down(image)))))
        return picture


class HardCoded(nn.Module):
    """The number of flattened elements stands in the code, so that the last convolution must be left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 10, 3, 2, 1)
        self.wide, self.head = nn.Linear(160, 12), nn.Linear(12, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv1(image))))
        scores: torch.Tensor = self.head(torch.relu(self.wide(x.view(-1, 160))))
        return scores


class Tied(nn.Module):
    """A language model of one layer: what reads words and what writes them is one matrix, and a layer is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.mix, self.back = nn.Embedding(40, 12), nn.Linear(12, 16), nn.Linear(16, 12)
        self.out = nn.Linear(12, 40, bias=False)
        self.out.weight = self.words.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens)
        for _ in range(2):
            x = x + self.back(functional.silu(self.mix(x)))
        scores: torch.Tensor = self.out(x)
        return scores


HANDMADE: tuple[ZooModel, ...] = (
    ZooModel("densenet", densenet, IMAGE),
    ZooModel("unet", UNet, IMAGE),
    ZooModel("shufflenet_v1", shufflenet_grouped, IMAGE),
    ZooModel("shufflenet_v2", shufflenet, IMAGE),
    ZooModel("lstm_tagger", Tagger, TOKENS, integers=40),
    ZooModel("gru_regressor", Regressor, SERIES),
    ZooModel("two_inputs", TwoInputs, PAIR),
    ZooModel("two_outputs", TwoOutputs, IMAGE),
    ZooModel("dict_input", lambda: DictInput(OfDict()), PAIR),
    ZooModel("super_resolution", super_resolution, IMAGE),
    ZooModel("group_norm_resnet", group_norm_resnet, IMAGE),
    ZooModel("norm_free_resnet", norm_free_resnet, IMAGE),
    ZooModel("style_transfer", style_transfer, IMAGE),
    ZooModel("squeeze_excite", squeeze_excite, IMAGE),
    ZooModel("separable_prelu", separable, IMAGE),
    ZooModel("autoencoder", Autoencoder, IMAGE),
    ZooModel("tied_words", Tied, TOKENS, integers=40),
    ZooModel("hard_coded", HardCoded, IMAGE),
)
