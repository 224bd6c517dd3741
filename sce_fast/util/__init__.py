"""Helpers that depend on no other room: files, names, random numbers, rows, terminal, versions."""
