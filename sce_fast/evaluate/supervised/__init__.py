"""Classifiers trained on labelled samples: linear heads on a frozen backbone, or a head and its backbone together."""
