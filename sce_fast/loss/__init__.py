"""The SCE loss, its backends and the queue of past keys.

api.py has sce_loss and SCELoss, queue.py has KeyQueue; both are names of sce_fast. Nothing is imported here, since the
table of backends imports the kernels, and these import problem.py.
"""
