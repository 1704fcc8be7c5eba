"""Installed versions of packages."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed_versions(*packages: str) -> dict[str, str]:
    """Returns the installed versions of this package, of torch and of the named distributions, by name."""
    found = {}
    for package in ("tgdd_plugin", "torch", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
