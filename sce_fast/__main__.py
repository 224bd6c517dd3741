"""`python -m sce_fast` is the command `sce-fast`."""

from sce_fast.cli import main

if __name__ == "__main__":
    main()
