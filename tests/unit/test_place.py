"""The directory of a run: whose files are replaced, and that it is one run's."""

from __future__ import annotations

from pathlib import Path

import pytest

from conform.run.lines import pcap_name
from conform.run.place import Place, PlaceError
from conform.run.runfile import dumps

HEADER = {"kind": "header", "format": 1, "planned": ["a/b.v4", "a/b.v6"]}


def _files(place: Path) -> list[str]:
    return sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())


def _ran(out: Path) -> None:
    place = Place(out, "linux")
    place.writer.write(dumps(HEADER))
    place.close()
    (out / "pcap").mkdir(exist_ok=True)
    for name in ("junit.xml", "report.html", pcap_name("a/b.v4")):
        (out / name).write_text("of the run")


def test_an_earlier_run_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _ran(out)
    (out / "notes.txt").write_text("mine")
    (out / "pcap/mine.pcapng").write_text("mine")
    Place(out, "linux").close()
    assert _files(out) == ["notes.txt", "pcap/mine.pcapng", "run.jsonl"]
    assert (out / "run.jsonl").read_bytes() == b""


def test_captures_without_others_are_gone_with_their_directory(tmp_path: Path) -> None:
    _ran(tmp_path)
    Place(tmp_path, "linux").close()
    assert not (tmp_path / "pcap").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pcap/somebody.pcapng", "theirs"),
        ("junit.xml", "<testsuites/>"),
        ("report.html", "a page"),
        ("run.jsonl", "{}\n"),
        ("run.jsonl", "what another program logs\n"),
        ("run.jsonl", '{"kind":"header","format":99}\n'),
    ],
)
def test_what_is_not_of_a_run_is_left_alone(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    with pytest.raises(PlaceError, match=r"no run of conform|a run of conform"):
        Place(tmp_path, "linux")
    assert _files(tmp_path) == [name]
    assert (tmp_path / name).read_text() == text


def test_a_directory_of_other_things_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "pcap").mkdir()
    Place(tmp_path, "linux").close()
    assert _files(tmp_path) == ["notes.txt", "run.jsonl"]


def test_one_run_at_a_time(tmp_path: Path) -> None:
    first = Place(tmp_path, "linux")
    first.writer.write(dumps(HEADER))
    with pytest.raises(PlaceError, match="another run writes there"):
        Place(tmp_path, "linux")
    assert (tmp_path / "run.jsonl").read_bytes() == dumps(HEADER)
    first.close()
    Place(tmp_path, "linux").close()


def test_a_place_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PlaceError, match=r"cannot be made: .*file"):
        Place(tmp_path / "file/out", "linux")


def test_without_a_name_each_run_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    places = [Place(None, "linux") for _ in range(3)]
    assert len({place.directory for place in places}) == 3
    assert (tmp_path / "reports/latest").resolve() == places[-1].directory.resolve()
    for place in places:
        place.close()
