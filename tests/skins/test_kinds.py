"""A skin's kind is the names of its parts: those of one part are written as they always were, others together are
written and read, and what makes no sense is refused with the parts' names."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bedplate.adapters.head import Head
from bedplate.adapters.lora import LoraConfig
from bedplate.adapters.soft_prompt import SoftPrompt
from bedplate.core.errors import SkinError, UsageError
from bedplate.skins.classical import Classical
from bedplate.skins.export import export_skin
from bedplate.skins.files import SKIN_FILE, card_of, read_card, read_skin, skin_files, skin_id, write_skin
from bedplate.skins.lookup_index import Chunk, Neighbours, Passages
from bedplate.skins.output import EmbeddingOutput, LabelOutput
from bedplate.skins.prompt import Demonstration, Prompt
from bedplate.skins.skin import (
    PARTS,
    BaseReference,
    EndpointReference,
    EvaluatedWith,
    InputField,
    Limits,
    LoraPart,
    ProbePart,
    Provenance,
    Skin,
    cascaded,
)
from bedplate.skins.verify import verify_skin

LABELS = ("negative", "positive")
SHOWN = (Demonstration({"review": "bäd\n"}, " negative"), Demonstration({"review": "ok"}, " positive"))
LOOP = Prompt("{% for d in demonstrations %}{{ d.inputs.review }}:{{ d.answer }}\n{% endfor %}{{ review }}:")
ON_PASSAGES = Prompt("{% for p in passages %}{{ p.text }}\n{% endfor %}{{ review }}:")
JUDGED = EvaluatedWith(weights="float32")
IDS = {  # of the skins that `of_one_part` makes, as a version wrote them that knew no others
    "prompt": "c7bc0a7f4d476f35a8ce45256a1a82891d92ec6db4644e02d00982228ee3dd5d",
    "lora": "51f35fcffa934fb2d16910ea549e1ee4153fdb0b85dd8e17b7c0b4de0a086345",
    "probe": "18c2a54b8afc4fafe1623c40b4e908838ca75f6a19d680e4f1329863c75a255d",
    "soft_prompt": "0a44830612f096a36122394a6d4fdcb7daee617dfbb810d93bda425510dd1af5",
    "embed": "876f9ba887234ea822324a21a407d1af66a6d1fa1682a157025696b3de800771",
    "knn": "a3a0c2e33c958541e059af13e5cdc5da97a526da09ba411e470fc58282aab48b",
    "retrieval": "4116e537c32861b83f57df76f74a9a3f21501f8b34a2180ea017cf2701c982cd",
    "hosted": "4b443d785eae23389f39aa46753bc4c07d1857abeaeb6b11b6d2db9211d0a88d",
    "classical": "4ffa12fcbf0f022d30f048c706fb504db939df54be2ffb463ad26832b7fb9ce6",
    "cascade": "5e4e0fc8ecef5c821971d1bd9b90f9fab7e58dc8c8b242f44c7e25a8efec4fe9",
}


def numbers(*shape: int) -> torch.Tensor:
    return torch.arange(float(np.prod(shape))).reshape(shape) / 8 - 1


def reference(letter: str) -> BaseReference:
    return BaseReference(name=letter, family="llama", weights_id=letter * 64, tokenizer_id="1" * 64)


def skin(name: str, **parts: Any) -> Skin:
    values: dict[str, Any] = {
        "bases": {"main": reference("a")},
        "inputs": {"review": InputField()},
        "output": LabelOutput(labels=LABELS, continuations=(" negative", " positive")),
        "prompt": LOOP,
        "provenance": Provenance(task="reviews", rung=name, seed=0, code_version="0.1.0"),
        "evaluated_with": JUDGED,
    }
    return Skin(name=name, **(values | parts))


def lora(size: int = 4) -> LoraPart:
    path = "layers.0.attention.q"
    tensors = {f"{path}.lora_A": numbers(2, size), f"{path}.lora_B": numbers(size, 2)}
    return LoraPart(LoraConfig(r=2, alpha=4, targets=(path,)), tensors)


def probe(size: int = 4) -> dict[str, Any]:
    return {"probe": ProbePart(Head(numbers(2, size), numbers(2), LABELS), "layers.1"), "output": LABEL}


def words() -> dict[str, Any]:
    weight, bias = numbers(2, 3).numpy(), numbers(2).numpy()
    model = Classical(("bad", "ok", "ok !"), np.array([1.0, 1.5, 2.0], np.float32), weight, bias, LABELS)
    return {"classical": model, "output": LABEL, "bases": {}, "prompt": Prompt("{{ review }}"), "evaluated_with": None}


def pool(size: int = 4) -> Neighbours:
    return Neighbours(np.eye(size, dtype=np.float32)[:2], SHOWN, 1)


def documents(size: int = 4) -> dict[str, Any]:
    chunks = (Chunk("a", 0, "one"), Chunk("b", 3, "two"))
    return {"passages": Passages(np.eye(size, dtype=np.float32)[:2], chunks, 1), "prompt": ON_PASSAGES}


LABEL = LabelOutput(labels=LABELS)
ENDPOINT = {"main": EndpointReference(url="http://localhost:1/v1", model="m")}
VECTOR = {"output": EmbeddingOutput(dimensions=3), "prompt": Prompt("query: {{ review }}")}


def of_one_part() -> dict[str, Skin]:
    prompt = Prompt("{{ review }}?", "chat", "Say it.")
    two = {"main": reference("a"), "embedder": reference("b")}
    skins = (
        skin("prompt", demonstrations=SHOWN, generation={"temperature": 0.5}, limits=Limits(max_prompt_tokens=99)),
        skin("lora", lora=lora(), demonstrations=SHOWN),
        skin("probe", **probe()),
        skin("soft_prompt", soft_prompt=SoftPrompt(numbers(3, 4))),
        skin("embed", **VECTOR),
        skin("knn", bases=two, neighbours=pool(), embedded_with=JUDGED),
        skin("retrieval", **documents()),
        skin("classical", **words()),
        skin("hosted", bases=ENDPOINT, prompt=prompt, output=LABEL, evaluated_with=None),
    )
    by_kind = {part_skin.name: part_skin for part_skin in skins}
    return by_kind | {"cascade": cascaded("cascade", by_kind["probe"], by_kind["hosted"], 0.75)}


TOGETHER: dict[str, dict[str, Any]] = {
    "lora+retrieval": {"lora": True, **documents()},
    "lora+knn": {"lora": True, "neighbours": pool()},
    "lora+probe": {"lora": True, **probe()},
    "soft_prompt+probe": {"soft_prompt": SoftPrompt(numbers(3, 16)), **probe()},
    "lora+soft_prompt": {"lora": True, "soft_prompt": SoftPrompt(numbers(3, 16))},
    "lora+embed": {"lora": True, **VECTOR},
    "retrieval+probe": {**documents(), **probe()},
    "lora+soft_prompt+knn+probe": {
        "lora": True,
        "soft_prompt": SoftPrompt(numbers(3, 16)),
        "neighbours": pool(),
        **probe(),
    },
}


def test_every_kind_of_the_table_has_a_skin_here() -> None:
    assert set(IDS) == {"prompt", *PARTS}


@pytest.mark.parametrize("skin_type", IDS)
def test_a_skin_of_one_part_has_the_bytes_that_it_always_had(skin_type: str, tmp_path: Path) -> None:
    built = of_one_part()[skin_type]
    assert built.kind == skin_type
    assert skin_id(built) == IDS[skin_type]
    read = read_skin(write_skin(built, tmp_path / "skin"))
    assert (read.kind, skin_files(read)) == (skin_type, skin_files(built))
    assert json.loads((tmp_path / "skin" / SKIN_FILE).read_text())["kind"] == skin_type
    assert (read.inputs, read.output, read.prompt) == (built.inputs, built.output, built.prompt)
    assert (read.provenance, read.generation, read.limits) == (built.provenance, built.generation, built.limits)


@pytest.mark.parametrize("skin_type", TOGETHER)
def test_parts_together_are_written_read_and_verified(
    skin_type: str, base: Any, build_skin: Any, tmp_path: Path
) -> None:
    parts, plain = dict(TOGETHER[skin_type]), build_skin(base, "prompt")
    for name, sized_part in (
        ("probe", probe(16)),
        ("neighbours", {"neighbours": pool(16)}),
        ("passages", documents(16)),
    ):
        parts |= sized_part if name in parts else {}
    if "lora" in parts:
        parts["lora"] = build_skin(base, "lora").lora
    built = dataclasses.replace(plain, demonstrations=(), **parts)
    assert built.kind == skin_type
    read = read_skin(write_skin(built, tmp_path / "one"))
    assert (read.kind, read.parts, skin_id(read)) == (skin_type, tuple(skin_type.split("+")), skin_id(built))
    write_skin(read, tmp_path / "two")
    for path in (path for path in (tmp_path / "one").rglob("*") if path.is_file()):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
    assert verify_skin(read, base) == []
    assert read_card(tmp_path / "one") == card_of(read)
    assert read_card(tmp_path / "one").kind == skin_type
    alone = [
        dataclasses.replace(built, **change) for change in ({"lora": None}, {"soft_prompt": None}, {"neighbours": None})
    ]
    assert len({skin_id(variant) for variant in (built, *alone)}) == 1 + sum(
        variant.kind != skin_type for variant in alone
    )


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"bases": ENDPOINT, "lora": lora()}, "cannot have hosted together with lora: an endpoint"),
        ({"bases": ENDPOINT, **documents()}, "cannot have hosted together with retrieval"),
        ({"bases": ENDPOINT, **VECTOR}, "cannot have hosted together with embed"),
        ({"neighbours": pool(), **documents()}, "cannot have knn together with retrieval: a skin looks up one index"),
        ({**probe(), **VECTOR}, "cannot have embed together with probe: a vector is of the text alone"),
        ({**words(), "lora": lora()}, "cannot have classical together with lora: a bag-of-words model answers alone"),
        ({**words(), **probe(), "bases": {}}, "cannot have classical together with probe"),
        ({**words(), "bases": {"main": reference("a")}}, "is a bag-of-words model, which has no use for a base 'main'"),
        ({**probe(), "bases": {}}, "names no main base"),
        ({**words(), "evaluated_with": JUDGED}, "no base's weights that it was judged with"),
        ({**words(), "prompt": LOOP, "demonstrations": SHOWN}, "it has no demonstrations"),
        ({**words(), "output": LabelOutput(labels=("a", "b"))}, "its head was made for the labels"),
        ({**words(), "output": VECTOR["output"]}, "cannot have classical together with embed"),
        ({**documents(), "output": VECTOR["output"]}, "cannot have embed together with retrieval"),
    ],
)
def test_what_makes_no_sense_together_is_refused_by_name(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(SkinError, match=message):
        skin("odd", **parts)


def test_a_cascade_has_no_parts_of_its_own() -> None:
    cascade = of_one_part()["cascade"]
    with pytest.raises(SkinError, match="cannot have cascade together with lora and probe: its two skins have parts"):
        dataclasses.replace(cascade, lora=lora(), probe=probe()["probe"])


def test_a_cascade_may_begin_with_a_skin_without_a_base(tmp_path: Path) -> None:
    by_kind = of_one_part()
    cascade = cascaded("both", by_kind["classical"], by_kind["probe"], 0.75)
    assert cascade.bases == {"second": reference("a")}
    read = read_skin(write_skin(cascade, tmp_path / "both"))
    assert (read.kind, read.bases, skin_id(read)) == ("cascade", cascade.bases, skin_id(cascade))
    card = read_card(tmp_path / "both")
    assert (card.base, card.second) == (None, reference("a"))
    with pytest.raises(SkinError, match="a cascade's bases and prompt are those of its two skins"):
        dataclasses.replace(cascade, bases={"main": reference("a")})


def test_parts_of_bases_of_different_sizes_fit_no_base(base: Any, build_skin: Any) -> None:
    mixed = dataclasses.replace(build_skin(base, "lora"), soft_prompt=SoftPrompt(numbers(3, 4)))
    with pytest.raises(SkinError, match="vectors of size 4, the base's features have size 16"):
        verify_skin(mixed, base)


def test_a_kind_that_the_parts_do_not_make_is_refused(tmp_path: Path) -> None:
    directory = write_skin(skin("both", lora=lora(), neighbours=pool()), tmp_path / "skin")
    listed = json.loads((directory / SKIN_FILE).read_text())
    for skin_type in ("lora", "knn", "knn+lora", "lora+knn+probe", "lora+lora+knn", "lora+knn+", ""):
        (directory / SKIN_FILE).write_text(json.dumps(listed | {"kind": skin_type}))
        for read in (read_skin, read_card):
            with pytest.raises(SkinError, match=r"does not fit the parts, which are of a 'lora\+knn'"):
                read(directory)
    (directory / SKIN_FILE).write_text(json.dumps(listed | {"kind": "lora+soft_prompt+knn"}))
    with pytest.raises(SkinError, match=r"soft_prompt\.safetensors does not fit"):
        read_skin(directory)


def test_peft_has_no_directory_for_weights_and_vectors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has LoRA weights and a soft prompt.*`bedplate skins merge`"):
        export_skin(skin("both", lora=lora(), soft_prompt=SoftPrompt(numbers(3, 4))), tmp_path / "out")
    assert not (tmp_path / "out").exists()
