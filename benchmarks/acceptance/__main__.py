"""python -m benchmarks.acceptance --out DIR"""

from .run import command_line

command_line()
