"""Installed versions of packages."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of the named distributions, and of this package and torch."""
    found = {}
    for package in ("tgdd_plugin", "torch", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
