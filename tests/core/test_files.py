"""Files are whole or absent, also when the writer is killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.core import files
from bedplate.core.errors import DataError, UsageError


def run_and_kill(code: str, *arguments: str) -> None:
    """Run Python code that prints a line when it is in the middle of its work, then SIGKILL it there."""
    child = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child.stdout as out:
        assert out.readline() == b"now\n"
        child.send_signal(signal.SIGKILL)
        assert child.wait(timeout=20) == -signal.SIGKILL


def names(directory: Path) -> set[str]:
    return {p.name for p in directory.iterdir()}


# --- hashes


def test_hashes(tmp_path: Path) -> None:
    content = b"x" * 3_000_001
    (tmp_path / "f").write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    assert files.sha256_bytes(content) == files.sha256_file(tmp_path / "f") == expected


def test_json_hash_is_canonical() -> None:
    expected = hashlib.sha256(b'{"a":[1,2.5,null],"b":"\\u00e9"}').hexdigest()
    assert files.sha256_json({"b": "é", "a": [1, 2.5, None]}) == expected
    with pytest.raises(ValueError, match="Out of range"):
        files.sha256_json(float("nan"))


# --- atomic files


def test_write_replaces_and_makes_parents(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    files.atomic_write(path, "é")
    files.atomic_write(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == {"b.txt"}
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_unwritable_output_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match=r"cannot write .*inside"):
        files.atomic_write(tmp_path / "file" / "inside", "x")
    with (
        pytest.raises(UsageError, match=r"cannot write .*inside"),
        files.atomic_directory(tmp_path / "file" / "inside"),
    ):
        pass


def test_killed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text("old")
    code = """
import os, sys, time
from bedplate.core import files
def slow(descriptor):
    print("now", flush=True)
    time.sleep(60)
os.fsync = slow
files.atomic_write(sys.argv[1], "new" * 1000)
"""
    run_and_kill(code, str(path))
    assert path.read_text() == "old"
    files.atomic_write(path, "new")
    assert path.read_text() == "new"


# --- atomic directories


def test_directory_appears_on_success_only(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with files.atomic_directory(target) as temporary:
        (temporary / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert names(tmp_path) == {"out"}


def _fail_within(target: Path, error: type[BaseException]) -> None:
    with files.atomic_directory(target, replace=True) as temporary:
        (temporary / "a").write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_directory_vanishes_on_failure(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        _fail_within(tmp_path / "out", error)
    assert names(tmp_path) == set()


def test_existing_directory_needs_replace(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    with files.atomic_directory(target) as temporary:  # empty: nothing can be lost
        (temporary / "a").write_text("old")
    with pytest.raises(UsageError, match="already exists"), files.atomic_directory(target):
        pass
    with pytest.raises(ValueError):
        _fail_within(target, ValueError)
    assert (target / "a").read_text() == "old"
    with files.atomic_directory(target, replace=True) as temporary:
        (temporary / "b").write_text("new")
        assert (target / "a").read_text() == "old"
    assert names(target) == {"b"}
    assert names(tmp_path) == {"out"}


def test_exchange_without_kernel_support(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    with files.atomic_directory(target) as temporary:
        (temporary / "a").write_text("old")
    monkeypatch.setattr("bedplate.core.files.ctypes.CDLL", lambda *_, **__: object())
    with files.atomic_directory(target, replace=True) as temporary:
        (temporary / "b").write_text("new")
    assert names(target) == {"b"}
    assert names(tmp_path) == {"out"}


def test_killed_directory_leaves_the_old_one_and_the_next_call_cleans_up(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with files.atomic_directory(target) as temporary:
        (temporary / "a").write_text("old")
    code = """
import sys, time
from bedplate.core.files import atomic_directory
with atomic_directory(sys.argv[1], replace=True) as temporary:
    (temporary / "a").write_text("half")
    print("now", flush=True)
    time.sleep(60)
"""
    run_and_kill(code, str(target))
    assert (target / "a").read_text() == "old"
    assert len(names(tmp_path)) == 2
    with files.atomic_directory(target, replace=True) as temporary:
        (temporary / "a").write_text("new")
    assert (target / "a").read_text() == "new"
    assert names(tmp_path) == {"out"}


def test_a_living_writer_is_not_cleaned_up(tmp_path: Path) -> None:
    with files.atomic_directory(tmp_path / "out", replace=True) as first:
        (first / "a").write_text("first")
        with files.atomic_directory(tmp_path / "out", replace=True) as second:
            (second / "a").write_text("second")
            assert (first / "a").read_text() == "first"
        assert (tmp_path / "out" / "a").read_text() == "second"
    assert (tmp_path / "out" / "a").read_text() == "first"


# --- locks


def test_lock_excludes_threads(tmp_path: Path) -> None:
    inside, max_inside = 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, max_inside
        with files.file_lock(tmp_path / "lock"):
            with guard:
                inside += 1
                max_inside = max(max_inside, inside)
            time.sleep(0.01)
            with guard:
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max_inside == 1


def test_a_killed_holder_frees_the_lock(tmp_path: Path) -> None:
    code = """
import sys, time
from bedplate.core.files import file_lock
with file_lock(sys.argv[1]):
    print("now", flush=True)
    time.sleep(60)
"""
    run_and_kill(code, str(tmp_path / "lock"))
    with files.file_lock(tmp_path / "lock"):
        pass


# --- text and JSON lines


def test_read_text_names_the_byte(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"ab\xff")
    with pytest.raises(DataError, match=r"not UTF-8 at byte 2 \(0xff\)"):
        files.read_text(tmp_path / "f")
    with pytest.raises(DataError, match="cannot be read"):
        files.read_text(tmp_path / "none")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab\u2028\n", max_size=3), inner, max_size=3),
    max_leaves=5,
)
json_rows = st.lists(st.dictionaries(st.text("abc\u2028", max_size=3), json_values, max_size=3), max_size=4)


@given(first=json_rows, second=json_rows)
def test_jsonl_round_trip(tmp_path_factory: pytest.TempPathFactory, first: Any, second: Any) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    files.append_jsonl(path, first)
    files.append_jsonl(path, second)
    assert files.read_jsonl(path) == first + second


@given(rows=json_rows.filter(bool), cut=st.integers(1, 400), appended=json_rows)
def test_append_after_a_torn_write_loses_the_torn_row_only(
    tmp_path_factory: pytest.TempPathFactory, rows: Any, cut: int, appended: Any
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    files.append_jsonl(path, rows)
    content = path.read_bytes()
    path.write_bytes(content[: max(0, len(content) - cut)])
    remaining = path.read_bytes()
    whole = remaining.count(b"\n") + (
        1 if remaining and not remaining.endswith(b"\n") and _is_json(remaining.split(b"\n")[-1]) else 0
    )
    assert files.read_jsonl(path, allow_torn_tail=True) == rows[:whole]
    files.append_jsonl(path, appended)
    assert files.read_jsonl(path) == rows[:whole] + appended


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ('{"a": 1}\n{"a": \n', "line 2: not valid JSON"),
        ('\n\n{"a": NaN}\n', "line 3: not valid JSON: NaN"),
        ('{"a": 1, "a": 2}\n', "a key appears twice"),
        ("[1]\n", "line 1: each line must be a JSON object"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_bad_jsonl(tmp_path: Path, content: str, part: str) -> None:
    (tmp_path / "f.jsonl").write_text(content)
    with pytest.raises(DataError, match=part):
        files.read_jsonl(tmp_path / "f.jsonl")


# --- paths


def test_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BEDPLATE_HOME", str(tmp_path / "here"))
    assert files.bedplate_home() == tmp_path / "here"
    assert not (tmp_path / "here").exists()
    monkeypatch.setenv("BEDPLATE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.bedplate_home() == tmp_path / ".cache" / "bedplate"


@pytest.mark.parametrize(
    "bad", ["", "/etc/passwd", "../x", "a/../../x", "a\\..\\..\\x", "\\x", "C:/x", "a\0b", "out/x"]
)
def test_safe_join_refuses(tmp_path: Path, bad: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to(tmp_path)
    with pytest.raises(DataError):
        files.safe_join(root, bad)


def test_safe_join_accepts_inside(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("a")
    assert files.safe_join(tmp_path, "a/b.txt") == tmp_path / "a" / "b.txt"
    assert files.safe_join(tmp_path, "link/b.txt") == tmp_path / "link" / "b.txt"
