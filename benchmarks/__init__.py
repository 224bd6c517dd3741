"""Measurements against named peers, the compile gate and the acceptance run."""
