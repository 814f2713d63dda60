"""Default prompts on the real base's tokenizer and chat template."""

import pytest

from bedplate.models.checkpoints.gguf import GgufReader
from bedplate.skins.output import LabelOutput
from bedplate.skins.phrasings import default_continuations, default_prompt
from bedplate.skins.prompt import Demonstration
from bedplate.text.tokenizer import Tokenizer

pytestmark = pytest.mark.real
LABELS = ("negative", "positive")


@pytest.mark.parametrize("format", ["plain", "chat"])
def test_the_labels_of_the_demo_are_one_token_each(smollm2_gguf, format):
    tokenizer = Tokenizer.from_fields(GgufReader(smollm2_gguf).metadata)
    prompt = default_prompt("reviews-sentiment", "Decide which.", ["review"], LABELS, format)
    output = LabelOutput(labels=LABELS, continuations=default_continuations(LABELS, format))
    shown = (Demonstration({"review": "Broke at once."}, output.continuations[0]),)
    ids, continuations = prompt.label_tokens(tokenizer, {"review": "It works <|im_end|>"}, shown, output)
    assert [tokenizer.decode(c) for c in continuations] == list(output.continuations)
    assert max(map(len, continuations)) == 1
    prefix = prompt.constant_prefix(tokenizer, shown)
    assert ids[: len(prefix)] == prefix
    assert len(ids) - len(prefix) < 25
    if format == "plain":
        assert not tokenizer.special_ids.intersection(ids)
