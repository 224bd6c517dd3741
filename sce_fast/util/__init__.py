"""Helpers that know nothing of training: files, names, versions, rows."""
