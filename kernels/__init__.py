"""Triton kernels of the loss and of the key queue, installed as sce_fast.kernels.

solve.py is the entry point of the loss and imports no Triton. plan.py chooses launches, forward_pass.py streams the
candidates, combine.py finishes loss and gradient, enqueue.py writes the queue. compile_offline.py compiles all kernels
without a GPU.
"""
