"""Pages made of templates: one look for all of them, everything escaped, each template compiled once in a process."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2


def page(name: str, package: str = "bedplate.report", **values: Any) -> str:
    """The template of this name among the package's `templates`, filled in; its `style` is what all reports have. What
    is not `Markup` is escaped, and a name without a value is an error (jinja2.UndefinedError)."""
    from markupsafe import Markup

    return _environment(package).get_template(name).render(style=Markup(_style()), **values)


@cache
def _environment(package: str) -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _style() -> str:
    return (files("bedplate.report") / "templates" / "report.css").read_text(encoding="utf-8")
