"""What a way is named by on the command line and in files: what products read, and what computes them."""

from __future__ import annotations

from typing import Literal

Weights = Literal["auto", "float32", "bfloat16", "int8", "int4"]
Kernel = Literal["auto", "torch", "native"]
