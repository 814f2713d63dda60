"""Media has a name, and is refused where rows, requests and skins come in."""

from __future__ import annotations

import numpy as np
import pytest

from bedplate.core.errors import RequestError
from bedplate.core.values import Media, as_text
from bedplate.data.splits import row_hash
from bedplate.evaluation.examples import Example
from bedplate.evaluation.ranking import Ranker
from bedplate.inference.predict.callable_skin import inputs_of
from bedplate.skins.lookup_index import text_of
from bedplate.skins.output import TextOutput
from bedplate.skins.prompt import Demonstration, Prompt
from bedplate.skins.skin import EndpointReference, InputField, Skin

PHOTO = Media("image", "ab" * 32, "image/png", "photo.png")
SKIN = Skin(
    name="asked",
    bases={"main": EndpointReference(url="http://localhost:1/v1", model="m")},
    inputs={"photo": InputField()},
    output=TextOutput(),
    prompt=Prompt("{{ photo }}"),
)


class Counts:
    def embed(self, rows: list[str]) -> np.ndarray:
        return np.ones((len(rows), 2))


@pytest.mark.parametrize(
    "call",
    [
        lambda: as_text(PHOTO),
        lambda: inputs_of(SKIN, PHOTO),
        lambda: inputs_of(SKIN, {"photo": PHOTO}),
        lambda: Demonstration({"photo": PHOTO}, "a cat"),
        lambda: SKIN.prompt.text({"photo": PHOTO}),
        lambda: text_of({"photo": PHOTO}, ["photo"]),
        lambda: Example("1", {"photo": PHOTO}, "cat", "1", "").texts,
        lambda: Ranker(Counts(), {"a": "b"}).predict([{"photo": PHOTO}]),
    ],
)
def test_media_is_refused_in_one_way(call):
    with pytest.raises(RequestError, match=r"photo\.png \(image/png\): inputs of kind image are not supported yet"):
        call()


def test_a_row_with_media_is_hashed_by_its_content():
    changed = Media(PHOTO.kind, "cd" * 32, PHOTO.media_type)
    assert row_hash({"photo": PHOTO}) == row_hash({"photo": PHOTO}) != row_hash({"photo": changed})


def test_a_text_is_itself():
    assert inputs_of(SKIN, "x") == inputs_of(SKIN, {"photo": "x"}) == {"photo": as_text("x")}
    with pytest.raises(RequestError, match=r"abababababab \(audio/wav\): inputs of kind audio"):
        as_text(Media("audio", "ab" * 32, "audio/wav"))
