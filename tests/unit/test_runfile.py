"""run.jsonl: whole lines in, whole lines out, and plain words about everything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conform.run.runfile import FORMAT, Reader, RunFileError, Writer, dumps

TRIAL = {
    "kind": "trial", "id": "a.v4", "case": "a", "title": "t", "file": "a.yaml", "row": "", "ip": 4, "attempt": 1,
    "seed": 0, "link": "tun", "document": {}, "levels": {}, "stack": {}, "transcript": [], "verdict": {},
    "result": "pass", "expected": True,
}  # fmt: skip
HEADER = {"kind": "header", "format": FORMAT, "conform": "0.1.0", "planned": ["a.v4", "b.v4"]}


def _write(path: Path, *lines: dict[str, object]) -> Path:
    writer = Writer(path)
    for line in lines:
        writer.write(dumps(line))
    writer.close()
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = _write(tmp_path / "run.jsonl", HEADER, TRIAL, {"kind": "end", "exit": 0})
    reader = Reader(tmp_path)
    assert reader.header == HEADER
    assert [line["id"] for line in reader.trials()] == ["a.v4"]
    assert reader.end == {"kind": "end", "exit": 0}
    assert not reader.cut
    assert Reader(path).header == HEADER


def test_a_line_cut_short_is_dropped(tmp_path: Path) -> None:
    path = _write(tmp_path / "run.jsonl", HEADER, TRIAL)
    path.write_bytes(path.read_bytes() + b'{"kind":"trial","id":"b.v')
    reader = Reader(path)
    assert [line["id"] for line in reader.trials()] == ["a.v4"]
    assert reader.cut
    assert reader.end is None


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = _write(tmp_path / "run.jsonl", HEADER)
    with pytest.raises(FileExistsError):
        Writer(path)


def test_text_of_any_kind_survives(tmp_path: Path) -> None:
    text = "line\nbreak \u2028 \u00e9 \udcff"
    raw = dumps({"kind": "trial", "id": text})
    assert raw.count(b"\n") == 1
    assert json.loads(raw.decode("utf-8", "surrogatepass"))["id"] == text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ":1: a run file begins with its header"),
        (b"{}\n", ":1: a run file begins with its header"),
        (b"no json\n", ":1: not JSON"),
        (b"[]\n", ":1: each line is a JSON object"),
        (b'{"kind":"header","format":99,"conform":"9.0"}\n', ":1: format 99, written by conform 9.0"),
        (b'{"kind":"header","format":"1"}\n', ":1: format '1' is none that was ever written"),
        (b'{"kind":"header","format":1}\n{"kind":"trial"}\n', ":2: a trial's line without id"),
        (b'{"kind":"header","format":1}\n{"kind":"header"}\n', ":2: a second header"),
        (b'{"kind":"header","format":1}\nxx\n', ":2: not JSON"),
    ],
)
def test_what_is_no_run_file_is_said_with_its_line(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(content)
    with pytest.raises(RunFileError) as caught:
        list(Reader(path).trials())
    assert words in str(caught.value)


def test_a_directory_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="there is no run file here"):
        Reader(tmp_path)
