"""The funnel of a corpus as one self-contained page, in the look of the other reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bedplate.report.pages import page


def corpus_page(funnel: Mapping[str, Any]) -> str:
    """The page of a funnel (the content of funnel.json). Everything that stands in it is escaped."""
    from markupsafe import Markup

    return page(
        "corpus.html.jinja",
        f=funnel,
        lengths=Markup(_lengths(funnel["edges"], funnel["before"], funnel["after"])),
        most=max(1, funnel["documents"]),
    )


def _lengths(edges: Sequence[int], before: Sequence[int], after: Sequence[int]) -> str:
    """How many texts have which length, read and kept."""
    from bedplate.report.plots import ACCENT, REFERENCE, new_figure, svg_of

    figure, axes = new_figure(7.4, 3.0)
    places = range(len(edges))
    axes.bar([place - 0.2 for place in places], before, 0.4, color=REFERENCE, label="read")
    axes.bar([place + 0.2 for place in places], after, 0.4, color=ACCENT, label="kept")
    names = [f"{edge:,}" if edge < 1000 else f"{edge // 1000:,}k" for edge in edges]
    axes.set_xticks(list(places), [f"{name}–" for name in names])
    axes.set_xlabel("characters of a text, from")
    axes.set_ylabel("documents")
    axes.legend(frameon=False)
    return svg_of(figure, "Lengths of texts")
