"""What benchmarks write down, the table made of it, and the masks that play lower processors."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

PLACE = Path(__file__).parent.parent.parent / "benchmarks"
INFORMATION = "CPU : SSE3 = 1 | AVX = 1 | AVX2 = 1 | F16C = 1 | FMA = 1 | {}LLAMAFILE = 1 | OPENMP = 1 | "


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """A module of benchmarks/, which is no package."""
    monkeypatch.syspath_prepend(str(PLACE))

    def of(name: str) -> ModuleType:
        return import_module(name)

    return of


def result(processor: str, *rows: dict[str, object]) -> str:
    return json.dumps({"benchmark": "x", "machine": {"kind": processor}, "rows": list(rows)})


def row(name: str, ours: float, peer: float, goal: float | None = None, setting: str = "") -> dict[str, object]:
    ratio = ours / peer
    return {
        "name": name,
        "ours": ours,
        "peer": peer,
        "unit": "tokens/s",
        "goal": goal,
        "ratio": ratio,
        "peer_setting": setting,
    }


def test_the_table_has_a_column_for_each_kind_of_machine(load, tmp_path: Path):
    table = load("table")
    file = tmp_path / "results.jsonl"
    lines = [
        result("EPYC", row("decode", 100.0, 100.0), row("prefill", 1951.0, 303.0, 6.0)),
        result("Xeon", row("decode", 44.2, 40.0, 1.5, "float32"), row("own words", 2.0, 1.0)),
        result("EPYC", row("decode", 160.0, 91.4, 1.5)),
    ]
    file.write_text("\n".join(lines) + "\n")
    text = table.table(table.results([file])).splitlines()
    assert text[0] == "| ours / peer: ratio | EPYC | Xeon |"
    assert text[2].endswith("| 1,951 / 303 tok/s: **6.44** | not measured |")
    assert text[3].endswith("| 160 / 91.4 tok/s: **1.75** | 44.2 / 40 tok/s (float32): **1.10** (goal 1.5) |")
    assert text[4] == "| own words | not measured | 2 / 1 tok/s: **2.00** |"
    page = f"above\n{table.BEGIN}\nold\n{table.END}\nbelow\n"
    assert table.filled(page, "new\n") == f"above\n{table.BEGIN}\nnew\n{table.END}\nbelow\n"
    assert table.README.read_text("utf-8").count(table.BEGIN) == 1


def test_a_line_that_is_no_result_is_named(load, tmp_path: Path):
    file = tmp_path / "results.jsonl"
    file.write_text(result("EPYC", row("decode", 1.0, 1.0)) + '\n{"rows": 3}\n')
    with pytest.raises(ValueError, match=r"results.jsonl, line 2: not what a benchmark writes"):
        load("table").results([file])


def test_a_mask_is_put_on_before_libraries_are_loaded(load):
    masks = load("masks")
    code = (
        "import os, sys, masks\n"
        "masks.wear('avx2')\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
        "print({**masks.in_force(), 'worn': masks.chosen(), 'llama': os.environ['LLAMA_CPP_LIB_PATH']})"
    )
    script = "import sys; sys.argv = ['-c', CODE]; exec(CODE)".replace("CODE", repr(code))
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(PLACE)}
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment, timeout=120
    )
    assert eval(process.stdout) == {
        **masks.MASKS["avx2"],
        "worn": "avx2",
        "llama": str(masks.llama_place("avx2")),
    }


@pytest.mark.parametrize(
    ("mask", "uses", "why"),
    [
        ("avx2", "", None),
        ("avx2", "AVX512 = 1 | ", "it uses AVX512, which the mask avx2 takes away"),
        ("avx512_vnni", "AVX512 = 1 | AVX512_VNNI = 1 | ", None),
        (
            "avx512_vnni",
            "AVX512 = 1 | AVX512_BF16 = 1 | ",
            "it uses AVX512_BF16, which the mask avx512_vnni takes away",
        ),
    ],
)
def test_a_llama_that_uses_more_than_the_mask_is_no_peer(
    load, mask: str, uses: str, why: str | None, monkeypatch: pytest.MonkeyPatch
):
    masks = load("masks")
    monkeypatch.setenv(masks.CHOSEN, mask)
    assert masks.llama_unfit(INFORMATION.format(uses)) == why


def test_a_peers_fastest_dtype_is_taken(load, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    peers = load("peers")
    seconds, closed = {"bfloat16": 2.0, "float32": 0.5}, list[str]()
    monkeypatch.setattr(peers, "best_seconds", lambda trial, beaten_by: seconds[trial()])

    def build(dtype: str) -> SimpleNamespace:
        return SimpleNamespace(name="Peer", dtype=dtype, close=lambda: closed.append(dtype))

    peer, dtype = peers.fastest(build, lambda candidate: candidate.dtype)
    assert (peer.dtype, dtype, closed) == ("float32", "float32", ["bfloat16"])
    assert "Peer tried in float32 0.5 s, bfloat16 2 s: float32 it is" in capsys.readouterr().out


def test_a_setting_that_is_far_behind_is_not_tried_twice(load):
    comparison, calls = load("comparison"), []
    assert comparison.best_seconds(lambda: calls.append(0), beaten_by=0.0) >= 0
    assert len(calls) == 1
    comparison.best_seconds(lambda: calls.append(0))
    assert len(calls) == 4


def test_roofs_are_bytes_over_bandwidth_and_operations_over_the_peak(load):
    from bedplate.economics.model.footprint import step_reads
    from bedplate.models.specs.presets import PRESETS

    roof, machine = load("roof"), load("machine")
    spec = PRESETS["smollm2-135m"]
    local_machine = machine.Machine("x", "avx2", 2, 2, 0.0, 20e9, {"kernel int4": 400e9}, {}, {}, None)
    read = step_reads(spec, "int4")(1) + 100 * 30 * 2 * 3 * 64 * 2
    bound = 20e9 / read
    assert f"is {bound:,.0f} tokens/s: 50% reached" in roof.decode(spec, "int4", 100, 1, bound / 2, local_machine)
    # 106.2e6 parameters in the blocks' products, the head once
    operations = 2 * 106.2e6 * 512 + 2 * 49152 * 576 + 2 * 30 * 576 * 512**2
    bound = 512 * 400e9 / operations
    assert f"is {bound:,.0f} tokens/s" in roof.prefill(spec, "int4", 512, 1.0, local_machine)
    assert "was measured" in roof.prefill(spec, "int8", 512, 1.0, local_machine)
