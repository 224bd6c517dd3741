"""python -m benchmarks.acceptance --out DIR"""

from .run import cli

if __name__ == "__main__":
    cli()
