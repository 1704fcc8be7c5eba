"""How many forms of one function torch compiles."""

from __future__ import annotations

from typing import Any

import torch


def allow_forms(number: int) -> None:
    """Lets torch compile at least so many forms of a function in this process, before it goes on without."""
    limits: Any = torch._dynamo.config
    limit = "recompile_limit" if hasattr(limits, "recompile_limit") else "cache_size_limit"  # before torch 2.6
    setattr(limits, limit, max(getattr(limits, limit), number))
