"""Benchmarks of tgdd_plugin, each a module to run: ``python -m benchmarks.<name>``; see README.md beside this file."""
