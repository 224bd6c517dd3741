"""Images: augmentations, the plan of a view, and the graph that executes the plan."""
