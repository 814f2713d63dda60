"""Names, seeds, and stripping in pieces."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.core.errors import SkinError, UsageError
from bedplate.inference.engine.requests import Generate, Sampling
from bedplate.serving.models.served import Stripped, choices
from bedplate.serving.server.app import loaded_server
from bedplate.skins.files import read_skin


@given(st.lists(st.text(alphabet=" \n\tab\u3000\x1c")))
def test_stripping_pieces_is_stripping_the_whole(pieces):
    stripped = Stripped()
    assert "".join(map(stripped.push, pieces)) == "".join(pieces).strip()


@given(st.integers(-(2**63), 2**63 - 1))
def test_choices_have_seeds_of_their_own(seed):
    requests = choices(Generate((1,), Sampling(seed=seed)), 8)
    seeds = [request.sampling.seed for request in requests]
    assert seeds[0] == seed
    assert len(set(seeds)) == 8
    assert all(-(2**63) <= choice_seed < 2**63 for choice_seed in seeds)


def test_names_that_collide_are_refused(files):
    with (
        pytest.raises(UsageError, match="two models are called 'prompted'"),
        loaded_server(files.base, [files.skins[0]] * 2),
    ):
        pass
    with (
        pytest.raises(UsageError, match="'prompted' is a base; a skin cannot take its name"),
        loaded_server(files.base, files.skins[:1], name="prompted"),
    ):
        pass


@pytest.mark.parametrize("name", ["a:b", "", "a\nb"])
def test_names_that_clients_cannot_use_are_refused(files, name):
    with pytest.raises(UsageError), loaded_server(files.base, name=name or ":"):
        pass


def test_skins_judged_with_other_weights_are_refused(files):
    with pytest.raises(SkinError, match="float32"), loaded_server(files.base, files.skins[:1], dtype="bfloat16"):
        pass


def test_a_text_skin_with_impossible_settings_is_refused_when_loaded(files):
    writer = dataclasses.replace(read_skin(files.skins[3]), generation={"temperature": -1.0})
    with pytest.raises(Exception, match="temperature"), loaded_server(files.base, [writer]):
        pass
