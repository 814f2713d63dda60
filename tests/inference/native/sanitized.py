"""A pytest plugin: AddressSanitizer and UndefinedBehaviorSanitizer watch every kernel that its process compiles, and
end the process at the first thing that they find."""

from __future__ import annotations

from bedplate.inference.native import compiler

SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1")
compiler.FLAGS = (*compiler.FLAGS, *SANITIZE)  # after -O3, and part of what names a kept kernel
