"""Synthetic instructions: seed tasks through a teacher API to a data set, crash-safe and within a budget.

Nothing here imports torch: generating needs a network and a disk, not a GPU.
"""
