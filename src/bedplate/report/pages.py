"""Self-contained pages from templates, static or interactive. Everything is escaped, nothing is fetched.

An interactive page says so to the browser too (a Content-Security-Policy that allows its own script and style and no
request). Its data goes in as JSON, and its script makes elements of text only, so that no name is read as markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
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


_SCRIPTS = ("numbers.js", "page.js", "controls.js", "plots.js", "rows.js")
# What would end the element that holds the data, or begin a comment in it; and two ends of line of JavaScript's own.
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def interactive_page(title: str, scripts: Sequence[Traversable | str], data: Mapping[str, Any]) -> str:
    """The page of some data. scripts: JavaScript of the page, as files or as text, in order; the last one starts it.

    ValueError for data with NaN or infinite numbers: a page shows "never" as a word, so it is a null in the data.
    """
    import jinja2
    from markupsafe import Markup

    assets = files("bedplate.report") / "assets"
    parts = [*(assets / name for name in _SCRIPTS), *scripts]
    texts = [part if isinstance(part, str) else part.read_text(encoding="utf-8") for part in parts]
    script = "\n" + "\n".join(texts)
    style = "\n" + (assets / "page.css").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return environment.from_string((assets / "page.html").read_text(encoding="utf-8")).render(
        title=title,
        script=Markup(script),
        style=Markup(style),
        script_hash=_hash(script),
        style_hash=_hash(style),
        data=Markup(_embedded(data)),
    )


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _embedded(data: Mapping[str, Any]) -> str:
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return text
