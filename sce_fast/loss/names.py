"""Names of the loss's backends, fastest first, for those who need no more than the names."""

BACKEND_NAMES = ("cuda", "cuda_sm80", "triton", "cpu", "reference")
