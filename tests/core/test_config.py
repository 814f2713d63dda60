"""Strict configuration: every mistake is named with its file, line, key and nearest valid key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bedplate.core import config
from bedplate.core.config import Strict, dump_config, key_path, load_config, parse_config
from bedplate.core.errors import ConfigError


class Labels(Strict):
    kind: Literal["label"] = "label"
    labels: tuple[str, ...]


class Text(Strict):
    kind: Literal["text"] = "text"
    max_tokens: int = 16


class Task(Strict):
    task: str
    output: Annotated[Labels | Text, pydantic.Field(discriminator="kind")]
    rate: float = 1e-3
    seed: int | None = None
    tags: dict[str, list[str]] = pydantic.Field(default_factory=dict)


GOOD = """\
task: reviews
output:
  kind: label
  labels: [negative, positive]
rate: 3e-4
"""


def fails(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, Task, "task.yaml", overrides)
    return str(caught.value)


def test_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(GOOD)
    task = load_config(path, Task, ["seed=7", "output.labels.1=good", "tags.a=[x]"])
    assert task == Task(
        task="reviews", output=Labels(labels=("negative", "good")), rate=3e-4, seed=7, tags={"a": ["x"]}
    )


def test_frozen() -> None:
    task = parse_config(GOOD, Task, "task.yaml")
    with pytest.raises(pydantic.ValidationError):
        task.rate = 1.0


def test_unknown_key_names_file_line_key_and_nearest() -> None:
    message = fails(GOOD.replace("labels:", "labls:"))
    assert "task.yaml, line 4: output.labls: unknown key 'labls'; did you mean 'labels'?" in message
    assert "max_tokens" not in message  # only the keys of the union member that is meant
    assert "the keys here are output, rate, seed, tags, task" in fails(GOOD + "zzzzzz: 1\n")


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("labels: [a]", "output.kind: this key is required and missing"),
        ("kind: lable, labels: [a]", "output.kind: there is no 'lable'; did you mean 'label'?"),
        ("kind: number, labels: [a]", "output.kind: there is no 'number'; possible are label, text"),
    ],
)
def test_what_kind_a_section_is_of_is_a_key_like_any_other(output: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f"task: t\noutput: {{{output}}}", Task, source="f.yaml")
    assert str(caught.value) == f"f.yaml, line 2: {said}"


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "true", "No"])
def test_unquoted_boolean_as_label_says_quote_it(word: str) -> None:
    message = fails(GOOD.replace("negative", word))
    assert "line 4" in message
    assert "output.labels.0" in message
    assert f'quote it, as in "{word}"' in message


def test_number_as_text_says_quote_it() -> None:
    assert 'quote it, as in "12"' in fails(GOOD.replace("reviews", "12"))


@pytest.mark.parametrize("key", ["rate", "seed"])
def test_boolean_is_no_number(key: str) -> None:
    text = GOOD.replace("rate: 3e-4\n", "") + f"{key}: yes\n"
    assert f"{key} is the boolean true, but a number is wanted" in fails(text)


def test_files_are_read_with_libyaml_as_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes a tenth of the time. What it refuses is said in the words of the other parser."""
    root = Path(__file__).parents[2]
    texts = [path.read_text("utf-8") for path in (*root.glob("examples/**/*.yaml"), *root.glob("src/**/*.yaml"))]
    # no file of several documents, which is refused, and none that takes seconds without
    texts = [text for text in texts if "\n---\n" not in text and len(text) < 2_000]
    assert len(texts) > 10
    mistakes = [
        GOOD + "task: again\n",
        "a: [",
        "a: \x07",
        "a: 2026-13-45",
        "a: *b",
        "- 1",
        "a: {b: 1, b: 2}",
    ]
    constructed, read = config._constructed, list[str]()
    monkeypatch.setattr(
        config, "_constructed", lambda loader: read.append(type(loader).__name__) or constructed(loader)
    )
    with_libyaml = [config._parse_yaml(text, "f") for text in texts]
    assert read == ["_FastLoader"] * len(texts)
    refusals = [fails(text) for text in mistakes]
    monkeypatch.setattr(config, "_FastLoader", config._Loader)
    for (root_node, values), text in zip(with_libyaml, texts, strict=True):
        other_root, other_values = config._parse_yaml(text, "f")
        assert values == other_values
        assert lines_of(root_node) == lines_of(other_root)
    assert [fails(text) for text in mistakes] == refusals


def lines_of(node: yaml.Node | None) -> list[tuple[str, int]]:
    """Of a document's nodes in their order: what each is and the line that a message names."""
    if node is None:
        return []
    parts = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
    inner = [] if isinstance(node, yaml.ScalarNode) else [line for part in parts for line in lines_of(part)]
    return [(node.tag, node.start_mark.line), *inner]


@pytest.mark.parametrize("value", [".nan", ".inf"])
def test_no_nan(value: str) -> None:
    assert "finite" in fails(GOOD.replace("3e-4", value))


def test_an_empty_list_is_told_in_plain_words() -> None:
    class Several(Strict):
        names: Annotated[tuple[str, ...], pydantic.Field(min_length=1)]
        labels: Annotated[dict[str, int], pydantic.Field(max_length=1)]

    with pytest.raises(
        ConfigError, match=r"names: give at least 1 item, not 0.*\n.*labels: give at most 1 item, not more"
    ):
        parse_config("names: []\nlabels: {a: 1, b: 2}", Several, "file.yaml")


def test_duplicate_key_names_both_lines() -> None:
    assert "line 6: the key 'task' appears twice (first on line 1)" in fails(GOOD + "task: again\n")
    assert "appears twice" in fails("task: a\noutput: {kind: text, kind: text}\n")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [", "line 1, column 5"),
        ("- a\n", "top of the file is a list"),
        ("just text", "top of the file is a text"),
        ("", "task: this key is required"),
        ("task: \x07\n", "not valid YAML"),
        ("task: 2026-13-45\n", "not valid YAML"),
        ("task: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
        ("a: " + "[" * 1500, "nested too deeply"),
        ("? [a, b]\n: 1\n", "not valid YAML"),
    ],
)
def test_bad_files(text: str, part: str) -> None:
    assert part in fails(text)


def test_missing_directory_and_encoding(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "none.yaml", Task)
    with pytest.raises(ConfigError, match="is a directory"):
        load_config(tmp_path, Task)
    (tmp_path / "latin.yaml").write_bytes("task: café\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8 at byte 9"):
        load_config(tmp_path / "latin.yaml", Task)


class Choice(Strict):
    model: str
    price: float = 1.0


class Choices(Strict):
    options: dict[str, Choice]


def test_an_override_that_makes_an_entry_by_a_mistake_names_those_of_the_file() -> None:
    text = "options:\n  tune-hosted: {model: a}\n  prompt: {model: b}\n"
    with pytest.raises(ConfigError) as caught:
        parse_config(text, Choices, "case.yaml", ["options.tune_hosted.price=2"])
    assert str(caught.value) == (
        "override 'options.tune_hosted.price=2': case.yaml has no options.tune_hosted; did you mean "
        "'options.tune-hosted'?"
    )
    assert parse_config(text, Choices, "case.yaml", ["options.other={model: c}"]).options["other"].model == "c"


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("rat=1", "override 'rat=1': rat: unknown key 'rat'; did you mean 'rate'?"),
        ("rate", "write it as key=value"),
        ("=1", "write it as key=value"),
        ("a..b=1", "write it as key=value"),
        ('tags."gpt-4.1=[x]', 'stands in quotes, as in prices."gpt-4.1".usd=1'),
        ('tags."a"b=[x]', "stands in quotes"),
        ("output.labels.01=x", "'01' is no index"),
        ('output.labels."1"=x', "'1' is no index"),
        ("rate=[", "the value is not valid YAML"),
        ("output.labels.9=x", "is a list of 2"),
        ("task.inner=x", "has no 'inner' inside"),
        ("rate=fast", "override 'rate=fast': rate"),
        ('output."la.bls"=[x]', 'output."la.bls": unknown key'),
    ],
)
def test_bad_overrides(override: str, part: str) -> None:
    assert part in fails(GOOD, override)


def test_override_applies_before_validation() -> None:
    # the file alone does not validate
    assert parse_config("task: a\n", Task, "x", ["output={kind: text}"]).output == Text()
    assert parse_config("task: a\noutput:\n", Task, "x", ["output.kind=text"]).output == Text()


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufeff"), max_size=12)


@given(
    task=words,
    labels=st.lists(words, max_size=4).map(tuple),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    seed=st.none() | st.integers(),
    tags=st.dictionaries(words, st.lists(words, max_size=3), max_size=3),
)
def test_dump_reads_back_equal(task: str, labels: tuple[str, ...], rate: float, seed: int | None, tags: Any) -> None:
    config = Task(task=task, output=Labels(labels=labels), rate=rate, seed=seed, tags=tags)
    assert parse_config(dump_config(config), Task, "dumped") == config


@given(st.text(max_size=60))
def test_any_text_is_refused_with_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^a file"):  # no such text makes a Task: it lacks `output`
        parse_config(text, Task, "a file")


keys = st.text("abcdefgh", min_size=1, max_size=4)
values = st.integers() | st.booleans() | st.text("abc xyz", max_size=8).map(str.strip).filter(bool)


class Free(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")


@given(path=st.lists(keys, min_size=1, max_size=4), value=values)
def test_override_sets_exactly_the_path(path: list[str], value: object) -> None:
    import yaml

    text = yaml.safe_dump(value).removesuffix("...\n").strip()
    nested: Any = parse_config("", Free, "x", [f"{'.'.join(path)}={text}"]).model_extra
    for key in path:
        assert list(nested) == [key]
        nested = nested[key]
    assert nested == value
    assert type(nested) is type(value)


def test_an_override_of_an_alias_leaves_its_anchor_and_the_other_aliases_alone() -> None:
    text = "a: &q {x: 1, y: {z: [1, 2]}}\nb: *q\nc: {<<: *q, x: 2}\n"
    anchored = {"x": 1, "y": {"z": [1, 2]}}

    def read(*overrides: str) -> Any:
        return parse_config(text, Free, "x", overrides).model_extra

    assert read("a.x=5") == {"a": anchored | {"x": 5}, "b": anchored, "c": anchored | {"x": 2}}
    assert read("b.y.z.1=5") == {"a": anchored, "b": {"x": 1, "y": {"z": [1, 5]}}, "c": anchored | {"x": 2}}
    assert read("c.y.w=5") == {"a": anchored, "b": anchored, "c": {"x": 2, "y": {"z": [1, 2], "w": 5}}}
    assert read("d=&p {x: 1}", "a.y.z.0=7", "b.y.z.0=8")["a"]["y"] == {"z": [7, 2]}


@pytest.mark.parametrize("quote", ['"', "'"])
def test_a_quoted_key_may_have_a_dot(quote: str) -> None:
    text = "task: a\noutput: {kind: text}\ntags: {gpt-4.1: [x], gpt-4.01: [y]}\n"
    task = parse_config(text, Task, "x", [f"tags.{quote}gpt-4.1{quote}.0=z", f"tags . {quote}a=b{quote} =[c]"])
    assert task.tags == {"gpt-4.1": ["z"], "gpt-4.01": ["y"], "a=b": ["c"]}


def test_a_key_that_wants_quotes_says_so() -> None:
    text = GOOD + "tags: {gpt-4.1: [x]}\n"
    assert "the key 'gpt-4.1' has a dot in it; quote it: tags.\"gpt-4.1\".0=…" in fails(text, "tags.gpt-4.1.0=y")
    message = fails(GOOD + "tags: {gpt-4.1: x}\n")
    assert message.startswith('task.yaml, line 6: tags."gpt-4.1": ')


@given(
    path=st.lists(st.text("ab.=01 '", min_size=1, max_size=6) | st.text('a.="', max_size=4), min_size=1, max_size=4),
    value=st.integers(),
)
def test_key_path_spells_any_key(path: list[str], value: int) -> None:
    nested: Any = parse_config("", Free, "x", [f"{key_path(path)}={value}"]).model_extra
    for key in path:
        assert list(nested) == [key]
        nested = nested[key]
    assert nested == value


class Volume(Strict):
    calls_per_day: float


class Served(Strict):
    traffic: Volume


def test_calls_of_a_month_are_read_where_there_are_calls_of_a_day() -> None:
    for text in ("{calls_per_month: 365k}", "{calls_per_month: 365_000}", "{calls_per_day: 12000}"):
        assert parse_config(f"traffic: {text}", Served, "case.yaml").traffic.calls_per_day == pytest.approx(12_000)
    for text, message in (
        ("{calls_per_month: 1, calls_per_day: 1}", "both given: give one"),
        ("{calls_per_month: many}", "calls_per_month is 'many'; a number such as 1.5M"),
        ("{calls_per_month: -2}", "calls_per_month is -2; a number above 0"),
        ("{calls_per_week: 3}", "did you mean|the keys here"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_config(f"traffic: {text}", Served, "case.yaml")
    for override, calls in (("traffic.calls_per_day=7", 7), ("traffic.calls_per_month=730", 24)):
        served = parse_config("traffic: {calls_per_month: 1M}", Served, "case.yaml", [override])
        assert served.traffic.calls_per_day == pytest.approx(calls)
    with pytest.raises(ConfigError, match="unknown key 'calls_per_month'"):
        parse_config(f"{GOOD}calls_per_month: 3", Task, "task.yaml")
