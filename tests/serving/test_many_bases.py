"""Several bases behind one server: each skin finds its own, and each is asked for what it can do."""

from __future__ import annotations

import pytest
from tests.tiny import write_tiny_base

from bedplate.models.checkpoints.base import load_base
from bedplate.serving.loading import loaded_house, server_config
from bedplate.skins.files import write_skin

from .conftest import Server, make_skins, running


def test_two_decoders_with_a_skin_each(files, tmp_path):
    second = write_tiny_base(tmp_path / "second", seed=9)
    write_skin(make_skins(load_base(second))[0], tmp_path / "skin")
    config = server_config(files.base, second)
    with (
        pytest.raises(Exception, match="two models are called"),
        loaded_house(config, [files.skins[0], tmp_path / "skin"]),
    ):
        pass
    with loaded_house(config, [files.skins[1], tmp_path / "skin"]) as house, running(house) as url:
        server = Server(url, house, {})
        listed = {model.id: model.to_dict()["bedplate"]["base"] for model in server.client.models.list()}
        assert listed == {"tiny": "tiny", "second": "second", "tuned": "tiny", "prompted": "second"}
        for name in listed:
            assert server.chat(model=name).status_code == 200
