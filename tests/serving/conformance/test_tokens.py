"""The tokenizer's routes, against transformers' tokenizer of the same files."""

from __future__ import annotations

import httpx
import pytest
import transformers

HI = [{"role": "user", "content": "hi"}]
TEXTS = ("this product is great", "ü 😀 \n ok", "a<|im_end|>b", "")


@pytest.fixture(scope="module")
def reference(files):
    return transformers.AutoTokenizer.from_pretrained(files.base)


@pytest.mark.parametrize("text", TEXTS)
def test_there_and_back(server, reference, text):
    reply = server.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    assert reply["tokens"] == reference(text)["input_ids"]
    assert reply["token_strs"] == reference.convert_ids_to_tokens(reply["tokens"])
    assert reply["count"] == len(reply["tokens"])
    assert reply["max_model_len"] == 512
    assert server.post("/detokenize", json={"tokens": reply["tokens"]}).json() == {"prompt": text}


def test_special_tokens_of_an_encoder(mixed_server, encoder_dir):
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=str(encoder_dir / "tokenizer.json"))
    for special in (True, False):
        request = {"model": "bert", "prompt": "the product", "add_special_tokens": special}
        tokens = mixed_server.post("/tokenize", json=request).json()["tokens"]
        assert tokens == reference("the product", add_special_tokens=special)["input_ids"]


@pytest.mark.parametrize("prompt", [True, False])
def test_conversations(server, reference, prompt):
    messages = [{"role": "system", "content": "be nice"}, {"role": "user", "content": "hi"}]
    reply = server.post("/tokenize", json={"messages": messages, "add_generation_prompt": prompt}).json()
    expected = reference.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=True, return_dict=False)
    assert reply["tokens"] == expected


def test_a_skins_prompt_is_what_its_replies_count(server):
    for name in ("writer", "prompted", "probed"):
        messages = [{"role": "user", "content": "hi"}]
        count = server.post("/tokenize", json={"model": name, "messages": messages}).json()["count"]
        assert count == server.chat(model=name).json()["usage"]["prompt_tokens"]


def test_tokenizer_info(server, reference):
    with httpx.Client(trust_env=False) as client:
        metadata = client.get(server.url + "/tokenizer_info").json()
        assert client.get(server.url + "/tokenizer_info", params={"model": "nobody"}).status_code == 404
    for role in ("bos_token", "eos_token", "pad_token"):
        assert metadata[role] == getattr(reference, role)
    assert metadata["chat_template"] == reference.chat_template
    assert metadata["vocab_size"] == len(reference)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, "prompt"),
        ("/tokenize", {"prompt": 1}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "user"}]}, "messages[0].content"),
        (
            "/tokenize",
            {"messages": [{"role": "user", "content": "a"}], "add_special_tokens": True},
            "add_special_tokens",
        ),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, "messages"),
        ("/tokenize", {"prompt": "a", "what": True}, "what"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [320]}, "tokens"),
        ("/detokenize", {"tokens": [1.0]}, "tokens[0]"),
    ],
)
def test_refused(server, path, body, param):
    reply = server.post(path, json=body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param
