"""The commands of sce-fast, one file each. A command's options are the parameters of its function."""
