"""Triton kernels of sce_fast; the loss runs on its PyTorch reference until they are here."""
