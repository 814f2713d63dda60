"""Completion as shells do it: bash for certain, zsh and fish where they are there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bedplate.cli.main import VERBS, main

COMPLETIONS: tuple[tuple[str, set[str]], ...] = (
    ("ad", {"adapt"}),
    ("", {*VERBS}),
    ("plan tr", {"train"}),
    ("plan train gpt2 --prec", {"--precision"}),
    ("plan train --precision ", {"bf16", "fp16", "fp8", "tf32", "fp32"}),
    ("keys re", {"revoke"}),
    ("data search-mixture --go", {"--goal"}),
    ("adapt plan --ru", {"--rungs"}),
)


def script(capsys: pytest.CaptureFixture[str], shell: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["completion", shell])
    assert ended.value.code == 0
    return capsys.readouterr().out


def program(directory: Path) -> None:
    """Writes the command `bedplate` of this Python."""
    path = directory / "bedplate"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -m bedplate "$@"\n')
    path.chmod(0o755)


def test_bash_completes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "completion").write_text(script(capsys, "bash"))
    code = f"source {tmp_path}/completion\n"
    for line, _ in COMPLETIONS:
        words = " ".join(f"'{word}'" for word in ["bedplate", *line.split(" ")])
        code += f"COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}}-1)); "
        code += f'_bedplate_completion {tmp_path}/bedplate; echo "${{COMPREPLY[*]}}"\n'
    program(tmp_path)
    completed = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    for (line, expected), offered in zip(COMPLETIONS, completed.stdout.splitlines(), strict=True):
        assert expected <= set(offered.split()), line
        assert all(word.startswith(line.rpartition(" ")[2]) for word in offered.split())


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "completion").write_text(script(capsys, "fish"))
    code = f"source {tmp_path}/completion\n"
    for line, _ in COMPLETIONS:
        code += f"echo (complete -C 'bedplate {line}' | cut -f 1)\n"
    program(tmp_path)
    environment = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    completed = subprocess.run(
        ["fish", "--no-config", "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    for (line, expected), offered in zip(COMPLETIONS, completed.stdout.splitlines(), strict=True):
        assert expected <= set(offered.split()), line


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    text = script(capsys, shell)
    assert f"_BEDPLATE_COMPLETE=complete_{shell}" in text
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=text, text=True, check=True)


def test_an_unknown_shell_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["completion", "tcsh"])
    assert ended.value.code == 2
    assert "'tcsh' is not one of 'bash'" in capsys.readouterr().err
