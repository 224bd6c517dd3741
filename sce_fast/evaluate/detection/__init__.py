"""Action detection: what persons do in key frames of videos, as in AVA."""
