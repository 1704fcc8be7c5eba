"""Continual learning: a memory of earlier tasks, and its replay."""
