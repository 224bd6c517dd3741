"""Images: augmentations, their plan, the graph that executes it."""
