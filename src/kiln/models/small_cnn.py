"""One small convolutional network of our own, for images of 8 to 64 pixels such as digits and CIFAR."""

from __future__ import annotations

from torch import Tensor, nn

MIN_SIZE = 4
WIDTHS = (32, 64, 128)


def conv_bn_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    """A 3x3 convolution that keeps the size, BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class SmallCNN(nn.Module):
    """Three stages of two convolutions, halving the size between them; mean over places; one linear layer.

    About 288 k parameters; 38 million multiply-adds at 32 px. Any size from 4 px on.

    Args:
        num_classes: width of the output.
        channels: of the input.
        drop: probability that a pooled feature is dropped in training.
        widths: channels of each stage.
    """

    def __init__(
        self, num_classes: int, channels: int = 3, *, drop: float = 0.0, widths: tuple[int, ...] = WIDTHS
    ) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for previous, width in zip((channels, *widths), widths, strict=False):
            if stages:
                stages.append(nn.MaxPool2d(2))
            stages += [conv_bn_relu(previous, width), conv_bn_relu(width, width)]
        self.features = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(drop)
        self.head = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) for normalised images (B, C, H, W)."""
        features = self.pool(self.features(images)).flatten(1)  # (B, widths[-1])
        return self.head(self.drop(features))
