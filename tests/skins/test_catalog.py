"""The catalogue: lineage both ways, many writers at once, a writer killed in the middle, rebuilding."""

import dataclasses
import json
import signal
import sqlite3
import time

import pytest
from tests.forked import Command

from bedplate.core.errors import DataError, UnknownItemError, UsageError
from bedplate.core.files import bedplate_home, sha256_file
from bedplate.skins.catalog import Catalog
from bedplate.skins.files import skin_id, write_skin
from bedplate.skins.lineage import trace
from bedplate.skins.records import CatalogRecord, of_identity, of_report, of_skin
from bedplate.skins.skin import Provenance


@pytest.fixture
def catalog(isolated_home):
    with Catalog.open() as opened:
        yield opened


def test_lineage_from_the_base_to_a_child_and_back(tmp_path, catalog, base, build_skin):
    corpus = "c" * 64
    report = tmp_path / "report.json"
    report.write_text("{}")
    base_id = catalog.record([of_identity("tiny", base.identity, tmp_path / "tiny", "llama", (corpus,))])
    parent = build_skin(base, "prompt", "parent")
    parent_id = catalog.record(of_skin(parent, tmp_path / "parent"))
    catalog.record([of_report(report, {"task": "reviews-sentiment"})])
    child = build_skin(base, "lora", "child", parents=(parent_id,))
    child = dataclasses.replace(child, provenance=child.provenance.model_copy(update={"report": sha256_file(report)}))
    child_id = catalog.record(of_skin(child, tmp_path / "child"))
    catalog.record([CatalogRecord("run", "run-1", "adapt", tmp_path, {"seed": 0}, (base_id,))])
    up = trace("child", catalog)
    assert {(node.what, node.name) for root in up.came_from for node in root.walk()} == {
        ("base", "tiny"),
        ("skin", "parent"),
        ("report", "reviews-sentiment"),
        ("data", "rows"),
        ("unknown", corpus[:12]),
    }
    assert up.became == ()
    down = trace(base_id[:8], catalog)
    assert {node.name for root in down.became for node in root.walk()} == {"parent", "child", "adapt"}
    assert catalog.resolve(child_id).details["kind"] == "lora"
    assert catalog.resolve("parent").path == str(tmp_path / "parent")
    assert [e.details["seed"] for e in catalog.entries("run")] == [0]


def test_recording_again_updates_and_does_not_double(tmp_path, catalog, skin):
    first = catalog.record(of_skin(skin, tmp_path / "a"))
    assert catalog.record(of_skin(skin, tmp_path / "b")) == first
    (skin_record,) = catalog.entries("skin")
    assert skin_record.path == str(tmp_path / "b")


def test_a_cycle_of_parents_ends(tmp_path, catalog):
    catalog.record(CatalogRecord("run", a, a, tmp_path, parents=(b,)) for a, b in ("ab", "ba"))
    assert [node.id for node in trace("a", catalog).came_from] == ["b"]


def test_finding(tmp_path, catalog):
    for name in ("abcdef1", "abcdef2"):
        catalog.record([CatalogRecord("run", name, "run", tmp_path)])
    with pytest.raises(UnknownItemError, match="nothing"):
        catalog.resolve("zzz")
    with pytest.raises(UnknownItemError):
        catalog.resolve("abcde")
    with pytest.raises(UsageError, match="2 ids"):
        catalog.resolve("abcdef")
    assert catalog.resolve("run").id == "abcdef2"


def start(directory, writer: str, count: int) -> Command:
    return Command(directory / writer, writer, str(count), main="tests.skins.catalog_writer")


def test_several_writers_and_one_killed_in_the_middle(tmp_path):
    """Every finished record is whole, the killed writer leaves no half and no lock, and writing goes on."""
    victim = start(tmp_path, "victim", 100_000)
    survivors = [start(tmp_path, f"w{n}", 12) for n in range(2)]
    while len(victim.output.splitlines()) < 10:
        assert victim.poll() is None, victim.errors
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    acknowledged = len(victim.output.splitlines())
    for process in survivors:
        assert process.wait() == 0, process.errors
    started = time.monotonic()
    with Catalog.open() as catalog:
        catalog.record([CatalogRecord("run", "after", "run", ".")])
        entries = catalog.entries("run")
    assert time.monotonic() - started < 10
    by_writer = {writer: [e for e in entries if e.id.startswith(f"{writer}-")] for writer in ("victim", "w0", "w1")}
    assert [len(by_writer[f"w{n}"]) for n in range(2)] == [12, 12]
    assert acknowledged <= len(by_writer["victim"]) <= acknowledged + 1
    connection = sqlite3.connect(bedplate_home() / "catalog.sqlite")
    rows = connection.execute("SELECT child, count(*) FROM parents GROUP BY child").fetchall()
    connection.close()
    assert {child for child, _ in rows} == {e.id for e in entries} - {"after"}
    assert {count for _, count in rows} == {50}


def test_what_lies_in_directories(tmp_path, catalog, base, build_skin):
    for skin_type in ("prompt", "lora"):
        skin = build_skin(base, skin_type, skin_type)
        write_skin(skin, tmp_path / "runs" / skin_type, {"report.json": b"{}"})
    (tmp_path / "runs" / "report.json").write_text(json.dumps({"task": "t", "verdict": {"status": "PASS"}}))
    exported = tmp_path / "runs" / "export"
    exported.mkdir()
    (exported / "base.json").write_text(json.dumps({"weights_id": base.identity.weights_id, "lineage": {}}))
    damaged = tmp_path / "runs" / "damaged"
    write_skin(build_skin(base, "probe", "probe"), damaged)
    (damaged / "head.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="not a directory"):
        catalog.add([tmp_path / "runs", tmp_path / "nowhere"])
    assert catalog.entries("skin") == []  # what fails changes nothing
    scan = catalog.add([tmp_path / "runs"])
    assert scan.counts == {"skin": 2, "base": 1, "report": 1}
    assert len(scan.problems) == 1
    assert "head.safetensors" in scan.problems[0]
    assert {e.name for e in catalog.entries("skin")} == {"prompt", "lora"}
    assert {node.name for node in trace("export", catalog).became} == {"prompt", "lora"}


def test_files_that_are_no_catalogue(tmp_path):
    path = tmp_path / "catalog.sqlite"
    path.write_bytes(b"not a database at all, but long enough to be looked at" * 40)
    with pytest.raises(DataError, match="move it away"):
        Catalog.open(path)
    connection = sqlite3.connect(tmp_path / "newer.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(UsageError, match="newer Bedplate"):
        Catalog.open(tmp_path / "newer.sqlite")


def test_the_id_does_not_depend_on_where_or_with_what_extras(tmp_path, skin):
    assert skin.provenance != Provenance()
    for place, extras in (("a", {}), ("b", {"report.html": b"<p>"})):
        write_skin(skin, tmp_path / place, extras)
    with Catalog.open(tmp_path / "c.sqlite") as catalog:
        assert catalog.add([tmp_path]).counts == {"skin": 2}
        assert [e.id for e in catalog.entries("skin")] == [skin_id(skin)]
