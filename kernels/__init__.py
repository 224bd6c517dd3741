"""Triton kernels of the loss, of the key queue and of views, installed as sce_fast.kernels.

solve.py is the entry point of the loss and imports no Triton. plan.py chooses launches, forward_pass.py streams the
candidates, combine.py finishes loss and gradient, enqueue.py writes the queue. photometric.py is the entry
point of views; color_jitter.py and gaussian_blur.py change their values. compile_offline.py compiles all kernels
without a GPU.
"""
