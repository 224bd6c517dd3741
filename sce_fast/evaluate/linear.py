"""A linear probe: logistic regression on frozen features."""

from torch import Tensor


def linear_top1(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    regularization: float = 1.0,
    max_iterations: int = 1000,
) -> float:
    """Share of test rows that a logistic regression, fitted to standardised train features, classifies rightly.

    Args:
        train_features, test_features: (n, F) and (m, F).
        train_labels, test_labels: (n,) and (m,) class numbers.
        regularization: C of scikit-learn, the inverse strength of the L2 penalty.
        max_iterations: of L-BFGS.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: what scikit-learn refuses, a single class for example.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise ImportError("the linear probe needs scikit-learn: pip install sce_fast[evaluate]") from error
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=regularization, max_iter=max_iterations))
    probe.fit(train_features.numpy(), train_labels.numpy())
    return float(probe.score(test_features.numpy(), test_labels.numpy()))
