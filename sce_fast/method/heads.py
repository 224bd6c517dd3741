"""Projector and predictor: the multi-layer perceptrons of the official configurations, and their variants."""

import itertools
from collections.abc import Callable

from torch import nn

NORMS = ("all", "hidden", "none")
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": lambda: nn.ReLU(inplace=True), "gelu": nn.GELU}


def mlp(
    sizes: tuple[int, ...], *, norm: str, affine: bool = False, bias: bool = True, activation: str = "relu"
) -> nn.Sequential:
    """Build linear layers of these sizes with an activation between them.

    Args:
        sizes: (input, hidden …, output).
        norm: layers with batch normalisation, which stands before the activation: "all", "hidden" or "none".
        affine: give the normalisation of the last layer a scale γ and a shift β, as the hidden ones have.
        bias: give the layers without normalisation a bias; the others have none.
        activation: "relu" or "gelu".

    Raises:
        ValueError: there are fewer than two sizes, a size is below 1, or norm or activation is unknown.

    Example:
        >>> mlp((2048, 4096, 4096, 256), norm="all")  # the ImageNet projector
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"sizes={sizes}: expected at least an input and an output size, all positive")
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r}: expected 'all', 'hidden' or 'none'")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r}: expected 'relu' or 'gelu'")
    layers: list[nn.Module] = []
    last = len(sizes) - 2
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        normalized = norm == "all" or (norm == "hidden" and i < last)
        layers.append(nn.Linear(inputs, outputs, bias=bias and not normalized))
        if normalized:
            layers.append(nn.BatchNorm1d(outputs, affine=affine or i < last))
        if i < last:
            layers.append(ACTIVATIONS[activation]())
    return nn.Sequential(*layers)


def projector(
    inputs: int,
    hidden: tuple[int, ...],
    outputs: int,
    *,
    norm: str,
    affine: bool = False,
    bias: bool = True,
    activation: str = "relu",
) -> nn.Sequential:
    """Build the projector of a recipe.

    Args:
        norm: layers with batch normalisation. "all" (ImageNet, Kinetics): all layers, the last without γ and β, and no
            biases. "hidden" (CIFAR10): hidden layers, and a bias in the last layer. "none" (ImageNet100): biases only.
        affine, bias, activation: see mlp.

    Raises:
        ValueError: see mlp.
    """
    return mlp((inputs, *hidden, outputs), norm=norm, affine=affine, bias=bias, activation=activation)


def predictor(
    dim: int,
    hidden: int,
    *,
    layers: int = 1,
    norm: str = "hidden",
    affine: bool = False,
    bias: bool = False,
    activation: str = "relu",
) -> nn.Sequential:
    """Build the predictor dim → hidden (batch normalisation, ReLU) → dim, without biases or output normalisation.

    Args:
        layers: number of hidden layers.
        norm, affine, bias, activation: see mlp; the defaults are those of the published runs.

    Raises:
        ValueError: see mlp.
    """
    return mlp((dim, *[hidden] * layers, dim), norm=norm, affine=affine, bias=bias, activation=activation)
