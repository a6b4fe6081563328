"""`kiln demo`: real handwritten digits, as image files through the true path."""

from __future__ import annotations

import hashlib
import re

import pytest
from albums import command

import kiln
from kiln.jobs.demo import write_digits


def test_the_digits_are_files_like_any_other(tmp_path):
    write_digits(tmp_path / "digits")
    source = kiln.open_source(tmp_path / "digits")
    assert len(source) == 1797
    assert sorted(set(source.labels)) == list("0123456789")
    assert source.header(0).mode == "L"
    assert (source.header(0).width, source.header(0).height) == (8, 8)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "digits").rglob("*.png")}
    write_digits(tmp_path / "digits")  # a second time there is nothing to do
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "digits").rglob("*.png")} == before
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(before))).hexdigest()
    write_digits(tmp_path / "again")
    again = sorted((tmp_path / "again").rglob("*.png"))
    assert hashlib.sha256(b"".join(path.read_bytes() for path in again)).hexdigest() == digest


@pytest.mark.slow
def test_the_demonstration_reaches_what_it_promises(tmp_path):
    said = command("demo", "--output", tmp_path / "runs")
    assert said.status == 0, said.err
    result = re.search(r"^test   accuracy ([\d.]+) % \(([\d.]+) to ([\d.]+)\)", said.out, re.MULTILINE)
    assert float(result[1]) >= 98.0
    assert float(result[2]) < float(result[1]) < float(result[3])
    run = re.search(r"^run    (.*)$", said.out, re.MULTILINE)[1]
    images = tmp_path / "runs/digits-images/7"
    answers = kiln.predict(run, images)
    assert sum(row["label"] == "7" for row in answers) / len(answers) > 0.97
    assert kiln.evaluate(run, split="test")["accuracy"] == kiln.Run(run).result["metrics"]["test"]["accuracy"]["value"]
