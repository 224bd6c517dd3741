"""The device that a recipe's settings are for."""


def has_gpu(device: object) -> bool:
    """Return whether a run with this `device` setting trains on a GPU."""
    import torch

    return device != "cpu" and torch.cuda.is_available()
