"""Projector and predictor: multi-layer perceptrons as the official configurations have them."""

import itertools

from torch import nn


def mlp(
    sizes: tuple[int, ...], *, hidden_norm: bool, output_norm: bool = False, output_bias: bool = True
) -> nn.Sequential:
    """Linear layers of these sizes with ReLU between them.

    Args:
        sizes: (input, hidden …, output).
        hidden_norm: batch normalisation before each ReLU; its layer then has no bias.
        output_norm: batch normalisation without γ and β after the last layer, which then has no bias.
        output_bias: bias of the last layer where no normalisation follows.

    Raises:
        ValueError: fewer than two sizes, or one below 1.

    Example:
        >>> mlp((2048, 4096, 4096, 256), hidden_norm=True, output_norm=True)  # the ImageNet projector
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"sizes={sizes}: expected at least an input and an output size, all positive")
    layers: list[nn.Module] = []
    last = len(sizes) - 2
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        if i < last:
            layers.append(nn.Linear(inputs, outputs, bias=not hidden_norm))
            layers += [nn.BatchNorm1d(outputs)] if hidden_norm else []
            layers.append(nn.ReLU(inplace=True))
        else:
            layers.append(nn.Linear(inputs, outputs, bias=output_bias and not output_norm))
            layers += [nn.BatchNorm1d(outputs, affine=False)] if output_norm else []
    return nn.Sequential(*layers)


def projector(inputs: int, hidden: tuple[int, ...], outputs: int, *, norm: str) -> nn.Sequential:
    """The projector of a recipe.

    Args:
        norm: "all": normalisation everywhere, the last one without γ and β, no biases (ImageNet, Kinetics);
            "hidden": normalisation of hidden layers, a bias at the end (CIFAR10); "none": biases only (ImageNet100).

    Raises:
        ValueError: unknown norm.
    """
    if norm not in ("all", "hidden", "none"):
        raise ValueError(f"projector norm={norm!r}: expected 'all', 'hidden' or 'none'")
    return mlp((inputs, *hidden, outputs), hidden_norm=norm != "none", output_norm=norm == "all")


def predictor(dim: int, hidden: int) -> nn.Sequential:
    """dim → hidden (BN, ReLU) → dim, no biases, nothing after the last layer."""
    return mlp((dim, hidden, dim), hidden_norm=True, output_bias=False)
