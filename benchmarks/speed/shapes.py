"""Shapes of the parameters that are stepped."""

Shapes = list[tuple[int, ...]]


def _norms(*widths: int) -> Shapes:
    return [(width,) for width in widths for _ in range(2)]


def resnet20() -> Shapes:
    """ResNet-20 for CIFAR-10: 65 tensors, 270 thousand parameters, convolutions as (h, w, i, o)."""
    widths = [16] * 7 + [32] * 6 + [64] * 6
    convolutions = [(3, 3, i, o) for i, o in zip([3, *widths], widths, strict=False)]
    return [*convolutions, *_norms(*widths), *_norms(16, 32, 64), (64, 10), (10,)]


def resnet50() -> Shapes:
    """ResNet-50 for ImageNet: 161 tensors, 25.6 million parameters, laid out likewise."""
    shapes: Shapes = [(7, 7, 3, 64), *_norms(64)]
    into = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(1, 1, into, width), (3, 3, width, width), (1, 1, width, 4 * width)]
            shapes += _norms(width, width, 4 * width)
            if block == 0:
                shapes += [(1, 1, into, 4 * width), *_norms(4 * width)]
            into = 4 * width
    return [*shapes, (2048, 1000), (1000,)]


MODELS: dict[str, Shapes] = {
    "65 tensors, 270 thousand": resnet20(),
    "161 tensors, 25.6 million": resnet50(),
    "1 tensor, 25 million": [(25_000_000,)],
}
# One tensor of more and more numbers, and more and more tensors of 1,000.
GROWTH: dict[str, Shapes] = {
    **{f"1 tensor of {n:,}": [(n,)] for n in (10**4, 10**5, 10**6, 10**7, 10**8)},
    **{f"{n:,} tensors of 1,000": [(1000,)] * n for n in (1, 10, 100, 1000)},
}
