"""Replay with distilled memories in Mammoth (https://github.com/aimagelab/mammoth), which is not on PyPI.

``python -m benchmarks.mammoth CHECKOUT`` runs its methods and this package's memories by its own runner; ``model.py``
and ``stream.py`` are what registers with it. They import Mammoth's modules, so only beside a checkout.
"""
