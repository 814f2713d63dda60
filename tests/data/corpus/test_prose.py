"""The default preset as a whole, and the language of a text as datatrove's filter tells it, by the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bedplate.core.config import parse_config
from bedplate.data.corpus.build import build
from bedplate.data.corpus.curate.draft import DraftDocument, Tools
from bedplate.data.corpus.curate.presets import LanguageSettings, language, rules_of
from bedplate.data.corpus.fates import fates_of, read_funnel
from bedplate.data.corpus.recipe import CorpusRecipe
from bedplate.data.corpus.shards import Corpus
from bedplate.text.tokenizer import Tokenizer

pytest.importorskip("datatrove")
pytest.importorskip("fasttext")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

ENGLISH = """The mill stood at the bend of the river, where the road from the village crosses the old stone bridge.
For two hundred years it had ground the corn of the farms around it, and nobody could remember a winter without it.
When the flood came in the spring, the wheel was torn from its axle and carried down to the sea.
The miller did not complain, because he had seen the clouds over the hills and knew what they would bring.
He wrote to his brother, who lived in the town, and asked him for the money that a new wheel would cost.
The answer came after a week, with a letter of four pages and hardly a word about the money.
In the end it was the farmers who paid, each of them what he could, and by the summer the mill was at work again."""
GERMAN = """Die Mühle stand an der Biegung des Flusses, wo die Straße aus dem Dorf die alte Brücke aus Stein überquert.
Seit zweihundert Jahren hatte sie das Korn der Höfe gemahlen, und niemand konnte sich an einen Winter ohne sie erinnern.
Als im Frühjahr das Hochwasser kam, wurde das Rad von der Achse gerissen und bis zum Meer hinuntergetragen."""
FRENCH = "Le moulin se trouvait au bord de la rivière, là où la route du village traverse le vieux pont de pierre. " * 2
ODD_TEXTS = [
    "水车坐落在河流的转弯处，村庄的道路在那里穿过古老的石桥。", "12 34 56 78 90", "a", "?!", "\n \n",
    f"{ENGLISH[:200]} {GERMAN[:200]}", f"{FRENCH[:60]} {ENGLISH[:60]}",
    "def f(x):\n    return x + 1\n" * 9, "ok la de e o",
]  # fmt: skip


@pytest.mark.real
@pytest.mark.parametrize(
    ("languages", "min_score"), [(("en",), 0.65), (("de", "fr"), 0.65), (("en",), 0.9), (("en",), 0.5)]
)
def test_the_language_is_as_datatrove_tells_it(
    lid_176: Path, monkeypatch: pytest.MonkeyPatch, languages: tuple[str, ...], min_score: float
) -> None:
    from datatrove.data import Document
    from datatrove.pipeline.filters.language_filter import LanguageFilter
    from datatrove.utils import lid

    monkeypatch.setattr(lid, "cached_asset_path_or_download", lambda *_, **__: str(lid_176))
    theirs: Any = LanguageFilter(list(languages), min_score)
    ours = language(LanguageSettings(languages=languages, at_least=min_score, characters=100_000), Tools())
    outcomes: set[bool] = set()
    for text in (ENGLISH, GERMAN, FRENCH, *ENGLISH.split("\n"), *GERMAN.split("\n"), *ODD_TEXTS):
        document = Document(text=text, id="")
        accepted, reason = bool(theirs.filter(document)), ours(DraftDocument(text, {}, Tools()))
        assert (reason is None) == accepted, (text, reason)
        if reason is not None:
            assert reason.partition(":")[0] == document.metadata["language"]
        outcomes.add(accepted)
    assert outcomes == {True, False}


@pytest.mark.real
def test_only_the_beginning_is_read_and_the_recipes_language_is_wanted(lid_176: Path) -> None:
    text = ENGLISH + GERMAN * 5
    assert language(LanguageSettings(characters=400), Tools("en"))(DraftDocument(text, {}, Tools())) is None
    assert (
        language(LanguageSettings(characters=9999), Tools("en"))(DraftDocument(text, {}, Tools())) or ""
    ).startswith("de: ")
    assert language(LanguageSettings(), Tools("de"))(DraftDocument(GERMAN, {}, Tools())) is None


@pytest.mark.real
def test_what_the_default_preset_does_to_prose(lid_176: Path, tmp_path: Path) -> None:
    """FineWeb's rules in FineWeb's order: each text falls to the first that is against it."""
    assert [name for name, _ in rules_of("prose", {}, Tools())] == [
        "length", "language", "repetition", "gopher", "c4", "fineweb", "personal",
    ]  # fmt: skip
    lines = ENGLISH.split("\n")
    texts = {
        "kept": ENGLISH,
        "mail": f"{ENGLISH}\nWhoever wants to know more may write to the miller at jane.doe@mill.example.co.uk today.",
        "empty": " ",
        "german": GERMAN,
        "again": "\n".join([lines[0]] * 9),
        "few": " ".join(lines[:2]),
        "braces": ENGLISH.replace("river", "{river}"),
        "short": "\n".join(" ".join(ENGLISH.split()[at : at + 4]) for at in range(0, 120, 4)),
    }
    (tmp_path / "t").mkdir()
    for name, text in texts.items():
        (tmp_path / f"t/{name}.txt").write_text(text)
    recipe = "corpus: c\nsources: [{name: a, kind: files, path: t}]\ntokenizer: {train: {vocab_size: 300}}\n"
    recipe += "dedup: {minhash: null}\nsplit: {valid: 0}\n"
    build(parse_config(recipe, CorpusRecipe, "r.yaml"), tmp_path, tmp_path / "out", quiet=True)
    fates = {name: fates_of(tmp_path / "out", f"{name}.txt")[0] for name in texts}
    assert {name: fate.rule for name, fate in fates.items()} == {
        "kept": None, "mail": None, "empty": "length", "german": "language", "again": "repetition", "few": "gopher",
        "braces": "c4", "short": "fineweb",
    }  # fmt: skip
    assert fates["mail"].changed == ("personal",)
    assert read_funnel(tmp_path / "out")["changed"] == {"personal": 1}
    corpus, tokenizer = Corpus.open(tmp_path / "out"), Tokenizer.from_directory(tmp_path / "out")
    stored_texts = {tokenizer.decode(ids[:-1].tolist()) for ids in corpus.documents("a", "train")}
    assert stored_texts == {ENGLISH, texts["mail"].replace("jane.doe@mill.example.co.uk", "email@example.com")}
