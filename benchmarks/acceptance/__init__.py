"""The ten-minute run that settles everything on a GPU: its parts, its supervisor, its report."""
