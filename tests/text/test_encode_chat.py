"""Conversations to ids: equal to transformers' where nothing is forged, and nothing can be forged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.core.errors import TemplateError, TokenizerError
from bedplate.text.tokenizer import Tokenizer

from .conftest import CHATML, small_fields

# each template changes the contents in its own way on the way to the text
TRIMMED = CHATML.replace("message['content']", "message['content'] | trim")
QUOTED = (
    "{% if tools %}{{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>"
    "{{ m | tojson(ensure_ascii=true) }}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
JOINED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + m.content + m.content.split('a') | join('-')"
    " + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ bos_token }}{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "trimmed": TRIMMED, "quoted": QUOTED, "joined": JOINED}
FORGED = [
    "<|im_end|>",
    "<|im_start|>",
    "<|im_",
    "end|>",
    "<",
    "|>",
    ">",
    "<|endoftext|>",
    "<s>",
    "<|im_end|><|im_end|>",
]

harmless = st.text(max_size=30).filter(lambda text: "<" not in text) | st.sampled_from(
    ["\n\nx ", " padded ", "end|>", ""]
)
hostile = st.lists(st.sampled_from([*FORGED, "a", " ", "\n", "é"]) | st.text(max_size=3), max_size=6).map("".join)


def chats(contents: st.SearchStrategy[str]) -> st.SearchStrategy[list[dict[str, Any]]]:
    pairs = st.lists(st.tuples(contents, contents), max_size=2)
    return st.tuples(pairs, contents).map(
        lambda t: [
            *(
                {"role": role, "content": text}
                for pair in t[0]
                for role, text in zip(("user", "assistant"), pair, strict=True)
            ),
            {"role": "user", "content": t[1]},
        ]
    )


@pytest.fixture(params=list(TEMPLATES))
def tokenizer(request: pytest.FixtureRequest, llamacpp: dict[str, Any]) -> Tokenizer:
    fields = small_fields(llamacpp, "smollm")
    return Tokenizer.from_fields({**fields, "tokenizer.chat_template": TEMPLATES[request.param]})


def test_ids_equal_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    import transformers

    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)

    @settings(max_examples=60, deadline=None)
    @given(chats(harmless), st.booleans())
    def check(messages: list[dict[str, Any]], prompt: bool) -> None:
        expected = theirs.apply_chat_template(messages, add_generation_prompt=prompt)["input_ids"]
        assert tokenizer.encode_chat(messages, add_generation_prompt=prompt) == expected

    check()


def test_contents_forge_nothing(tokenizer: Tokenizer) -> None:
    control = tokenizer.special_ids
    tools = [{"type": "function", "function": {"name": "<|im_start|>", "<|im_end|>": "<|im_end|>"}}]

    @settings(max_examples=100, deadline=None)
    @given(chats(hostile), st.booleans())
    def check(messages: list[dict[str, Any]], with_tools: bool) -> None:
        assert tokenizer.chat is not None
        given_tools = tools if with_tools else None
        ids = tokenizer.encode_chat(messages, tools=given_tools)
        # exactly the control tokens that the template writes around empty contents
        quiet = [{**message, "content": "x"} for message in messages]
        expected = [i for i in tokenizer.encode_chat(quiet, tools=[{"a": 1}] if with_tools else None) if i in control]
        assert [index for index in ids if index in control] == expected
        # and the text is what the template makes of the contents
        text = tokenizer.chat.render(messages, tools=given_tools)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text

    check()


def test_merges_across_the_edge_of_contents_are_kept(small: Tokenizer) -> None:
    # with a look-alike elsewhere in the conversation, the other contents are encoded as without it
    first = {"role": "user", "content": "\n\nHello the end\n"}
    clean = small.encode_chat([first], add_generation_prompt=False)
    marked = small.encode_chat([first, {"role": "user", "content": "<|im_end|>"}])
    assert marked[: len(clean)] == clean


def test_fields_joined_by_the_template_forge_nothing(llamacpp: dict[str, Any]) -> None:
    template = "{% for m in messages %}{{ m.name + m.content + m.last }}{% endfor %}"
    tokenizer = Tokenizer.from_fields({**small_fields(llamacpp, "smollm"), "tokenizer.chat_template": template})
    for name, content, last in (
        ("<|im_", "end|>", ""),
        ("<", "|im_end|>", "x"),
        ("<|im_end|", "", ">"),
        ("", "<s", ">"),
    ):
        ids = tokenizer.encode_chat([{"role": "user", "name": name, "content": content, "last": last}])
        assert tokenizer.special_ids.isdisjoint(ids)
        assert tokenizer.decode(ids) == name + content + last


def test_private_use_characters_in_contents_survive(small: Tokenizer) -> None:
    text = "".join(map(chr, range(0xE000, 0xE010))) + " <|im_end|> \\ue010"
    ids = small.encode_chat([{"role": "user", "content": text}])
    assert f"\n{text}<|im_end|>" in small.decode(ids, skip_special_tokens=False)


def test_no_template(trained_dir: Path, tmp_path: Path) -> None:
    Tokenizer.from_directory(trained_dir).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(TokenizerError, match="no chat template"):
        Tokenizer.from_directory(tmp_path).encode_chat([{"role": "user", "content": "x"}])


# --- instruction tuning


def test_assistant_tokens_are_the_answers_and_their_end(small: Tokenizer) -> None:
    stripped = st.text(min_size=1, max_size=30).map(str.strip).filter(bool)

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.tuples(hostile, stripped), min_size=1, max_size=3))
    def check(pairs: list[tuple[str, str]]) -> None:
        messages = [
            {"role": role, "content": text}
            for pair in pairs
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        conversation = small.encode_conversation(messages)
        assert conversation.ids == small.encode_chat(messages, add_generation_prompt=False)
        written = [small.decode(conversation.ids[a:b], skip_special_tokens=False) for a, b in conversation.spans]
        assert written == [answer + "<|im_end|>" for _, answer in pairs]
        assert sum(conversation.assistant) == sum(b - a for a, b in conversation.spans)
        for position, (start, _) in enumerate(conversation.spans):
            prompt = small.encode_chat(messages[: 2 * position + 1])
            assert conversation.ids[:start] == prompt

    check()


def test_conversations_that_cannot_be_trained_on(small: Tokenizer, llamacpp: dict[str, Any]) -> None:
    user, answer = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}
    with pytest.raises(TemplateError, match="no assistant message"):
        small.encode_conversation([user])
    with pytest.raises(TemplateError, match="begins with an assistant message"):
        small.encode_conversation([answer, user])
    merging = CHATML.replace("'\n' + message", "'\n\n' + message").replace("assistant\n'", "assistant\n\n'")
    tokenizer = Tokenizer.from_fields({**small_fields(llamacpp, "qwen2"), "tokenizer.chat_template": merging})
    lines = {"role": "assistant", "content": "\n\n\ny"}
    assert tokenizer.encode_conversation([user, answer]).spans
    with pytest.raises(TemplateError, match="prompt of message 1 is not a prefix"):
        tokenizer.encode_conversation([user, lines])
    rewriting = "{% for m in messages %}{{ m.role }}{{ m.content if loop.last else '' }}{% endfor %}{{ '' }}"
    tokenizer = Tokenizer.from_fields({**small_fields(llamacpp, "smollm"), "tokenizer.chat_template": rewriting})
    with pytest.raises(TemplateError, match="not a prefix of the whole conversation"):
        tokenizer.encode_conversation([user, answer, user, answer])


def test_spans_under_a_mistral_style_template(llamacpp: dict[str, Any]) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
    )
    tokenizer = Tokenizer.from_fields({**small_fields(llamacpp, "smollm"), "tokenizer.chat_template": template})
    conversation = tokenizer.encode_conversation(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " Yes"}, {"role": "user", "content": "?"},
         {"role": "assistant", "content": " No"}]
    )  # fmt: skip
    assert conversation.ids.count(1) == 1  # one BOS
    assert [tokenizer.decode(conversation.ids[a:b], skip_special_tokens=False) for a, b in conversation.spans] == [
        " Yes<|im_end|>", " No<|im_end|>",
    ]  # fmt: skip
