"""Videos: their index, the plan of their clips, decoding, and the graph that augments clips."""
