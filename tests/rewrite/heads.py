"""Small segmentation models whose heads fuse maps in the ways that published ones do."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from dynprune.graph import find_groups
from dynprune.rewrite.narrow import can_narrow

CHANNELS = (8, 12, 16)
STRIDES = (4, 8, 16)


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(3, c, s, stride=s) for c, s in zip(CHANNELS, STRIDES, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        return [F.gelu(conv(x)) for conv in self.convs]


class ConvModule(nn.Module):
    """Convolution, BatchNorm and activation, as in mmcv."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, *, bias: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)
        self.bn = nn.BatchNorm2d(outputs)
        self.activate = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(self.bn(self.conv(x)))


class ConvHead(nn.Module):
    """A head with convolutions, in the manner of mmsegmentation's."""

    def __init__(
        self,
        *,
        width: int = 20,
        classes: int = 5,
        mode: str = "bilinear",
        align_corners: bool | None = False,
        antialias: bool = False,
        kernel: int = 1,
        fuse_bias: bool = False,
        projection_bias: bool = True,
        between: nn.Module | None = None,
        widths: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        widths = widths or (width,) * len(CHANNELS)
        self.convs = nn.ModuleList(
            nn.Conv2d(c, w, 1, bias=projection_bias) for c, w in zip(CHANNELS, widths, strict=True)
        )
        self.between = between
        self.fusion_conv = ConvModule(sum(widths), width, kernel, bias=fuse_bias)
        self.dropout = nn.Dropout2d(0.1)
        self.conv_seg = nn.Conv2d(width, classes, 1)
        self.resize = {"mode": mode, "align_corners": align_corners, "antialias": antialias}

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        outs = []
        for x, conv in zip(inputs, self.convs, strict=True):
            y = conv(x)
            if self.between is not None:
                y = self.between(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            outs.append(F.interpolate(y, size=inputs[0].shape[2:], **self.resize))
        return self.conv_seg(self.dropout(self.fusion_conv(torch.cat(outs, dim=1))))


class LinearHead(nn.Module):
    """A head on named maps whose projections and fusing layer are linears over tokens."""

    def __init__(self, *, width: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.stems = nn.ModuleDict({str(i): nn.Linear(c, width) for i, c in enumerate(CHANNELS)})
        self.join = nn.Linear(width * len(CHANNELS), width)
        self.logits = nn.Conv2d(width, classes, 1)

    def forward(self, maps: dict[str, Tensor], *, scale: float = 1.0) -> Tensor:
        size = maps["0"].shape[2:]
        outs = []
        for key, stem in self.stems.items():
            y = stem(maps[key].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            outs.append(y if key == "0" else F.interpolate(y, size=size, mode="bilinear"))
        joined = self.join(torch.cat(outs, 1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.logits(F.gelu(joined))


class Model(nn.Module):
    """A backbone and a head."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        maps = self.backbone(x)
        if isinstance(self.head, LinearHead):
            return self.head({str(i): m for i, m in enumerate(maps)}, scale=1.0)
        return self.head(maps)


def stirred(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Return every BatchNorm statistics and parameters that are not the identity, in place."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.uniform_(0.3, 1.5, generator=generator)
    return model.eval()


def segformer(**changes: object) -> nn.Module:
    settings = {
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [8, 16, 24, 32],
        "num_attention_heads": [1, 1, 2, 2],
        "decoder_hidden_size": 32,
        "num_labels": 5,
        **changes,
    }
    torch.manual_seed(0)
    return stirred(SegformerForSemanticSegmentation(SegformerConfig(**settings)))


def image(height: int = 64, width: int = 64, *, batch: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, height, width, generator=generator)


def output(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = model(x)
    return y if isinstance(y, Tensor) else y.logits


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Float32 sums in another order: relative to the largest value."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def hidden_layers(model, example):
    return [g for g in find_groups(model, example).groups if can_narrow(model, g)]


def silence(model, group, neurons, value):
    """Let neurons stand at one value whatever the input: before the activation, at its carrier."""
    carrier = model.get_submodule(group.carriers[0].module)
    with torch.no_grad():
        carrier.weight[neurons] = 0.0
        carrier.bias[neurons] = value
