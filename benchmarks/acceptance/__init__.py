"""The ten-minute acceptance run on a GPU: its parts and their items, its supervisor, its report."""
