"""What a recipe needs of the extra `data`, so that a build says so before it begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec

from bedplate.core.errors import UsageError
from bedplate.data.corpus.curate.presets import PRESETS, RULES
from bedplate.data.corpus.readers.parts import SourcePart
from bedplate.data.corpus.readers.text import PROSE, Code, PyPI, StandardLibrary, language_of
from bedplate.data.corpus.recipe import CorpusRecipe

_SUFFIXES = {".zst": "zstandard", ".parquet": "pyarrow"}


def check_installed(recipe: CorpusRecipe, planned: Sequence[SourcePart] = ()) -> None:
    """UsageError where a module is missing that a source or a rule needs. planned: the sources' parts, once they are
    known: their files say more."""
    missing = [f"{user} needs {module}" for module, user in _needs(recipe, planned) if find_spec(module) is None]
    if missing:
        raise UsageError(f"{recipe.corpus} needs the extra `data` ({missing[0]}): pip install 'bedplate[data]'")


def _needs(recipe: CorpusRecipe, planned: Sequence[SourcePart]) -> Iterator[tuple[str, str]]:
    """Modules, and what of the recipe imports each. Of a source under `mixed` only what is sure to be imported."""
    for source in recipe.sources:
        place, preset = f"source {source.name!r}", source.preset or recipe.preset
        files = [piece.path for part in planned if part.source == source.name for piece in part.pieces]
        suffixes = (module for end, module in _SUFFIXES.items() if any(path.endswith(end) for path in files))
        yield from ((module, place) for module in (*source.needs, *suffixes))
        if preset == "mixed":
            is_code = isinstance(source, Code | StandardLibrary) and not any(language_of(f) in PROSE for f in files)
            is_code |= isinstance(source, PyPI) and source.languages is not None and PROSE.isdisjoint(source.languages)
            preset = "code" if is_code else "prose"
        rules = dict.fromkeys(PRESETS[preset], True) | {
            name: settings is not None
            for name, settings in recipe.rules.items()
            if settings is None or preset == recipe.preset
        }
        yield from ((m, f"its rule `{name}`") for name, is_on in rules.items() if is_on for m in RULES[name].needs)
