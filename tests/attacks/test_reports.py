"""A skin's report is the page that was packed with it, and no other file of the machine."""

from __future__ import annotations

from tests.serving.conftest import Server

from bedplate.skins.files import read_skin, write_skin

from .conftest import attacked, head

PAGE, SECRET = b"<!doctype html><p>how it was judged</p>", "the key of another tenant"


def report(server: Server, name: str) -> tuple[int, str]:
    import httpx

    with httpx.Client(trust_env=False, timeout=30) as client:
        reply = client.get(f"{server.url}/skins/{name}/report", headers=head("us"))
    return reply.status_code, reply.text


def test_only_the_report_that_the_skin_lists_is_served(files, tmp_path):
    (tmp_path / "secret").write_text(SECRET)
    with attacked(files, tmp_path) as server:
        shelf = tmp_path / "shelf"
        for name, packed in (
            ("whole", True),
            ("linked", False),
            ("relinked", True),
            ("changed", True),
            ("added", False),
        ):
            write_skin(read_skin(files.skins[0]), shelf / name, {"report.html": PAGE} if packed else {})
            manifest = shelf / name / "skin.json"
            manifest.write_text(manifest.read_text().replace('"name": "prompted"', f'"name": "{name}"'))
            page = shelf / name / "report.html"
            if "linked" in name:
                page.unlink(missing_ok=True)
                page.symlink_to(tmp_path / "secret")
            elif name in ("changed", "added"):
                page.write_text(SECRET)
        scanned = server.post("/admin/skins/scan", json={}, headers=head("admin"))
        assert scanned.status_code == 200, scanned.text
        assert report(server, "whole") == (200, PAGE.decode())
        for name in ("linked", "relinked", "changed", "added"):
            status, text = report(server, name)
            assert status == 404, name
            assert SECRET not in text
