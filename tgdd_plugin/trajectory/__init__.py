"""A recorded training run on disk: its manifest and its stages."""
