"""The names of the loss's backends, in the order of the table, for modules that need nothing else of it."""

BACKEND_NAMES = ("cuda", "cuda_sm80", "triton", "cpu", "reference")
