"""Names of weight formats and kernels, as the command line and files spell them."""

from __future__ import annotations

from typing import Literal

Weights = Literal["auto", "float32", "bfloat16", "int8", "int4"]
Kernel = Literal["auto", "torch", "native"]
