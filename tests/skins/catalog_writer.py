"""A process that records runs in the catalogue, each with fifty parents: `main()` with its name and how many."""

from __future__ import annotations

import sys

from bedplate.skins.catalog import Catalog
from bedplate.skins.records import CatalogRecord


def main() -> None:
    writer, count = sys.argv[1], int(sys.argv[2])
    for number in range(count):
        with Catalog.open() as catalog:  # opening races too
            parents = tuple(f"{writer}-{number}-parent-{parent}" for parent in range(50))
            catalog.record([CatalogRecord("run", f"{writer}-{number}", "run", ".", {"i": number}, parents)])
        print(number, flush=True)
