"""Projector and predictor: the multi-layer perceptrons of the official configurations."""

import itertools

from torch import nn


def mlp(
    sizes: tuple[int, ...], *, hidden_norm: bool, output_norm: bool = False, output_bias: bool = True
) -> nn.Sequential:
    """Build linear layers of these sizes with ReLU between them.

    Args:
        sizes: (input, hidden …, output).
        hidden_norm: put batch normalisation before each ReLU; the linear layer before it then has no bias.
        output_norm: put batch normalisation without γ and β after the last layer, which then has no bias.
        output_bias: give the last layer a bias if no normalisation follows.

    Raises:
        ValueError: there are fewer than two sizes, or a size is below 1.

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
    """Build the projector of a recipe.

    Args:
        norm: layers with batch normalisation. "all" (ImageNet, Kinetics): all layers, the last without γ and β, and no
            biases. "hidden" (CIFAR10): hidden layers, and a bias in the last layer. "none" (ImageNet100): biases only.

    Raises:
        ValueError: norm is unknown.
    """
    if norm not in ("all", "hidden", "none"):
        raise ValueError(f"projector norm={norm!r}: expected 'all', 'hidden' or 'none'")
    return mlp((inputs, *hidden, outputs), hidden_norm=norm != "none", output_norm=norm == "all")


def predictor(dim: int, hidden: int) -> nn.Sequential:
    """Build the predictor dim → hidden (batch normalisation, ReLU) → dim, without biases or output normalisation."""
    return mlp((dim, hidden, dim), hidden_norm=True, output_bias=False)
