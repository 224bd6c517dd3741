"""Data from files to batches: the host plans everything, DALI executes it. Importing this package loads no DALI."""
