"""The compact data set as a file: FFCV's ``.beton`` and the card beside it."""
