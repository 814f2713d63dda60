"""Multiple choice against the lm-evaluation-harness, by sample; the sets; loss per token against transformers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import write_tiny_base

from bedplate.core.errors import ContextLengthExceeded, DataError
from bedplate.data.documents import Document, read_whole_documents
from bedplate.evaluation.suites import Suite, suite
from bedplate.evaluation.suites import question_sets as sets
from bedplate.evaluation.suites.general_text import GeneralText
from bedplate.evaluation.suites.question_sets import Question, accuracies, judge, tokens_of
from bedplate.evaluation.suites.suite import SampleSet, grades, run_suite
from bedplate.inference.predict.local import LocalModel
from bedplate.models.checkpoints.base import load_base

QUESTIONS = [
    Question("0", "own", "Question: is this product great?\nAnswer:", ("yes", "no it is not", "terrible"), 0, "0"),
    Question("1", "own", "The answer is ", ("positive", "négative — ça alors", "日本"), 1, "1"),
    Question("2", "own", "it broke after a day", ("and was terrible quality", "well"), 1, "2"),
    Question("3", "own", "Review: works\nSentiment:", ("neutral", "positive", "negative", "the user"), 2, "3"),
    Question("4", "own", "who was asked", ("the user", "the user asked by the question"), 0, "4"),
    *(
        Question(f"{i}", "own", f"number {i} is", (f"{i}", f"{i * 7} and more", "great"), i % 3, "")
        for i in range(5, 25)
    ),
    # no merge of the tokenizer applies to these, so that bytes cost alike and characters do not
    *(Question(f"{i}", "own", f"number {i} is", (f"QZX#{i}VK%", "日本語" * (i % 4 + 1)), 1, "") for i in range(25, 45)),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_tiny_base(tmp_path_factory.mktemp("base") / "tiny", seed=3)
    special = {"eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special})
    )
    return directory


def harness(directory: Path, questions: list[Question], tmp_path: Path) -> list[dict[str, Any]]:
    """lm-eval's own log of samples, in order."""
    pytest.importorskip("lm_eval")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        rows = tmp_path / "rows.jsonl"
        rows.write_text(
            "".join(json.dumps({"c": i.context, "o": list(i.choices), "g": i.gold}) + "\n" for i in questions)
        )
        task = ConfigurableTask(
            config={
                "task": "own",
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"test": str(rows)}, "cache_dir": str(tmp_path / "cache")},
                "test_split": "test",
                "output_type": "multiple_choice",
                "doc_to_text": "{{c}}",
                "doc_to_choice": "{{o}}",
                "doc_to_target": "{{g}}",
                "metric_list": [{"metric": name} for name in ("acc", "acc_norm", "acc_bytes")],
            }
        )
        model = HFLM(pretrained=str(directory), device="cpu", dtype="float32", batch_size=1)
        results = evaluate(model, {"own": task}, log_samples=True, bootstrap_iters=0)
    assert results is not None
    return sorted(results["samples"]["own"], key=lambda sample: sample["doc_id"])


def test_every_sample_agrees_with_the_harness(tiny: Path, tmp_path: Path) -> None:
    theirs = harness(tiny, QUESTIONS, tmp_path)
    with LocalModel(load_base(tiny)) as model:
        ours = list(grades(model, QUESTIONS, "multiple choice"))
    assert len(theirs) == len(ours)
    for mine, sample in zip(ours, theirs, strict=True):
        peer = [float(response[0][0]) for response in sample["resps"]]
        assert mine.log_likelihoods == pytest.approx(peer, abs=1e-4), mine.question
        assert (mine.acc, mine.acc_norm, mine.acc_bytes) == tuple(
            sample[name] for name in ("acc", "acc_norm", "acc_bytes")
        )
    assert len({grade.acc_norm for grade in ours}) == 2  # both right and wrong ones were compared
    assert [grade.acc for grade in ours] != [grade.acc_norm for grade in ours]
    assert [grade.acc_norm for grade in ours] != [grade.acc_bytes for grade in ours]


def test_spaces_at_the_end_of_a_context_belong_to_the_choice(tiny: Path) -> None:
    tokenizer = load_base(tiny).need_tokenizer()
    context, choice = tokens_of(tokenizer, "The answer is ", "no")
    assert tokenizer.decode(list(context)) == "The answer is"
    assert tokenizer.decode(list(choice)) == "  no"


def test_a_tie_goes_to_the_first_choice() -> None:
    question = Question("x", "own", "c", ("aa", "bb"), 1, "x")
    assert judge(question, (-1.0, -1.0)).acc == 0.0


def test_an_item_that_does_not_fit_is_named(tiny: Path) -> None:
    long = Question("big", "own", "great " * 600, ("a", "b"), 0, "big")
    with LocalModel(load_base(tiny)) as model, pytest.raises(ContextLengthExceeded, match=r"item big of own has"):
        list(grades(model, [long], "multiple choice"))


def test_items_that_do_not_fit_are_left_out_of_a_suite_and_counted(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = Question("big", "own", "great " * 600, ("a", "b"), 0, "big")

    def suite_of(*questions: Question) -> Suite:
        return lambda limit: SampleSet(questions, "own", "0", 0, accuracies)

    suites = {"mixed": suite_of(long, *QUESTIONS, long), "long": suite_of(long)}
    monkeypatch.setattr(suite, "SUITES", suites)
    monkeypatch.setattr("bedplate.evaluation.suites.SUITES", suites)
    with LocalModel(load_base(tiny)) as model:
        mixed, none = run_suite(model, "mixed"), run_suite(model, "long")
        alone = list(grades(model, QUESTIONS, "multiple choice"))
    assert (mixed.too_long, none.too_long, none.measures) == (2, 1, {})
    assert mixed.measures["acc"].n == len(QUESTIONS)
    assert mixed.measures["acc"].value == pytest.approx(sum(grade.acc for grade in alone) / len(alone))


# --- the sets


def write_package(root: Path) -> None:
    """Files of the shapes that the pulled package has."""
    rows = {
        "PIQA/validation.jsonl": [
            {"question": f"goal {i}", "options": f"A. one {i} \nB. two {i}", "answer": f"B. two {i}"} for i in range(9)
        ]
        + [
            {"question": "goal 0", "options": "A. one 0\nB. two 0", "answer": "B. two 0"},  # a copy
            {"question": "no gold", "options": "A. x\nB. y"},
            {"question": "other", "options": "A. x\nB. y", "answer": "B. z"},
        ],
        "OpenBookQA/test.jsonl": [
            {"question": "fog is around ", "options": "A. a marsh\nB. a desert", "answer": "A. a marsh"}
        ],
        "CommonsenseQA/validation.jsonl": [
            {"question": "Where?", "options": "\nA. bank\nB. mall", "answer": "A. bank"},
        ],
        "BoolQ/dev.jsonl": [
            {"question": "is it so", "passage": "It is.", "answer": "True"},
            {"question": "is it not so", "passage": "It is.", "answer": "False"},
        ],
    }
    for name, file_rows in rows.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in file_rows))


def test_core_sets_are_read_worded_deduplicated_and_the_same_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(tmp_path)

    class Pulled:
        path, sha256 = tmp_path, "0" * 64

    monkeypatch.setattr(sets, "pull", lambda *_, **__: Pulled())
    questions = sets.core_items(5)
    assert questions.unusable == 2
    by_set = {name: [i for i in questions.samples if i.suite == name] for name in sets.CORE}
    assert {name: len(subset) for name, subset in by_set.items()} == {
        "piqa": 5,
        "openbookqa": 1,
        "commonsenseqa": 1,
        "boolq": 2,
    }
    assert questions == sets.core_items(5)
    piqa = by_set["piqa"][0]
    number = piqa.context.split()[2]
    assert (piqa.context, piqa.choices, piqa.gold) == (
        f"Question: goal {number}\nAnswer:",
        (f"one {number}", f"two {number}"),
        1,
    )
    assert by_set["openbookqa"][0].context == "fog is around"
    yes, no = sorted(by_set["boolq"], key=lambda i: -i.gold)
    assert yes.context == "It is.\nQuestion: is it so?\nAnswer:"
    assert (yes.choices, yes.gold, no.gold) == (("no", "yes"), 1, 0)
    assert yes.group == no.group  # one passage
    assert len({i.group for i in by_set["piqa"]}) == 5


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"choices": ["a", "b"], "gold": 0}, r"line 1: `context` must be a text"),
        ({"context": "c", "choices": ["a"], "gold": 0}, "two or more texts"),
        ({"context": "c", "choices": ["a", "b"], "gold": 2}, "0 to 1, not 2"),
        ({"context": "c", "choices": ["a", "b"], "gold": True}, "not True"),
    ],
)
def test_a_teams_own_items_are_checked(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    (tmp_path / "own.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=message):
        sets.own_items("own.jsonl", tmp_path)


# --- general text


def test_losses_are_those_of_transformers(tiny: Path) -> None:
    transformers = pytest.importorskip("transformers")
    documents = [GeneralText("a", "this product is great and works well"), GeneralText("b", "the answer is no. " * 90)]
    peer = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    base = load_base(tiny)
    with LocalModel(base) as model:
        ours = list(grades(model, documents, "general text"))
    for document, grade in zip(documents, ours, strict=True):
        ids = base.need_tokenizer().encode(document.text, parse_special=False)
        total, count = 0.0, 0
        for start in range(0, len(ids), 256):  # windows that do not overlap; their first token is only looked at
            window = torch.tensor([ids[start : start + 256]])
            if window.shape[1] < 2:
                continue
            with torch.no_grad():
                total += float(peer(window, labels=window).loss) * (window.shape[1] - 1)
            count += window.shape[1] - 1
        assert (grade.document, grade.tokens) == (document.id, count)
        assert grade.total == pytest.approx(total, rel=1e-4)


def test_rows_of_one_document_are_put_together_in_order(tmp_path: Path) -> None:
    rows = [("x", 2, "second"), ("y", 1, "alone"), ("x", 1, "first"), ("z", 1, " ")]
    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps({"document": d, "sentence": str(s), "text": t}) + "\n" for d, s, t in rows)
    )
    corpus = read_whole_documents("t.jsonl", tmp_path)
    assert corpus.documents == (Document("x", "first second"), Document("y", "alone"))
    assert read_whole_documents("t.jsonl", tmp_path, 1).documents == (Document("x", "first second"),)
    rows = [{"text": f"text {i}"} for i in range(1, 13)]
    (tmp_path / "u.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    documents = read_whole_documents("u.jsonl", tmp_path, 3).documents
    assert documents == tuple(Document(f"line {i}", f"text {i}") for i in (1, 2, 3))
    assert len(read_whole_documents("u.jsonl", tmp_path).documents) == 12
