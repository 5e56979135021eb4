"""Every broken case has a golden text of what is said of it: ``bad_cases/NAME.txt`` beside ``bad_cases/NAME.yaml``.

``CONFORM_GOLDEN=write pytest tests/unit/test_case_bad.py`` writes them anew; then read what changed.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hang import ends

from conform.case.load import load

HERE = Path(__file__).parent / "bad_cases"
NAMES = sorted(path.stem for path in HERE.glob("*.yaml"))
GOOD = "title: A close sends a FIN that takes one number\ncovers: 9293-MUST-13\nsteps:\n  - probe: alive\n"


def said(*paths: Path) -> list[str]:
    with ends():
        loaded = load(paths)
    assert not loaded.cases
    assert loaded.problems
    return [str(problem) for problem in loaded.problems]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_said(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)
    text = "\n".join(said(Path(f"{name}.yaml"))) + "\n"
    golden = HERE / f"{name}.txt"
    if os.environ.get("CONFORM_GOLDEN") == "write":
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")


def test_no_golden_is_left_over() -> None:
    assert sorted(path.stem for path in HERE.glob("*.txt")) == NAMES
    assert len(NAMES) >= 64


def test_all_in_one_go() -> None:
    loaded = load([HERE])
    assert not loaded.cases
    assert {Path(problem.file).stem for problem in loaded.problems} == set(NAMES)
    assert len(loaded.problems) > len(NAMES)


def test_a_sound_case_beside_broken_ones_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "bad.yaml").write_text(GOOD + "stpes: []\n")
    loaded = load([tmp_path])
    assert [case.case_id for case in loaded.cases] == ["good"]
    assert [problem.message for problem in loaded.problems] == ["unknown key 'stpes' in the case"]


# What cannot lie in a repository --------------------------------------------------------------------------------------
def test_large_file(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_text(GOOD + "  - probe: alive\n" * 700_000)
    assert said(path) == [f"{path}: the file has {path.stat().st_size:,} octets; a case has at most 1,048,576"]


HEAD = GOOD.rpartition("steps:")[0]
#: Texts that begin like numbers, and go on so for long: how each begins, and what is repeated.
NUMBER_LIKE = [("1", "_"), ("1", "1_"), ("", "1:"), ("1", "1"), ("0", "0"), ("1.", "1"), ("1", "e1"), ("0b", "_1")]
HOSTILE = [
    "[" * 1_000_000,
    "{a: " * 250_000,
    "- " * 500_000,
    "a: " + "x" * 1_000_000,
    "- a\n" * 250_000,
    "!" * 1_000_000,
    "&" * 1_000_000,
    '"' + "\\x41" * 250_000,
    "? " * 500_000,
    "a: b: " * 150_000,
]
HOSTILE += [
    "a: 1\n" * 200_000,
    HEAD + "steps:\n" + "  - x\n" * 20_000,
    HEAD + "steps:\n" + "  - expect: {flag: A}\n" * 6_000,
    HEAD + "matrix: {axes: {a: [" + ",".join(map(str, range(4000))) + ']}}\nsteps:\n  - send: {flag: "${a}"}\n',
    HEAD
    + "templates:\n"
    + "".join(f"  t{i}: {{use: t{i + 1}}}\n" for i in range(5000))
    + "steps:\n  - send: {use: t0}\n",
    HEAD
    + "matrix: {rows: [{id: x, "
    + ", ".join(f'v{i}: ["${{v{i + 1}}}", "${{v{i + 1}}}"]' for i in range(40))
    + ', v40: [1, 1]}]}\nsteps: ["${v0}"]\n',
    HEAD
    + "matrix: {rows: [{id: x, "
    + ", ".join(f'v{i}: "${{v{i + 1}}}"' for i in range(3000))
    + ', v3000: 1}]}\nsteps: ["${v0}"]\n',
    HEAD
    + "matrix: {rows: [{id: x, "
    + ", ".join(f'v{i}: ["${{v{i + 1}}}", "${{v{i + 1}}}"]' for i in range(25))
    + ', v25: [1, 1]}]}\nsteps: ["${v0}"]\n',
    HEAD + 'matrix: {rows: [{id: x, a: "' + "x" * 1000 + '"}]}\nsteps: [{why: "' + "${a}" * 5000 + '"}]\n',
    *(HEAD + f"why: {begin}{again * (1_000_000 // len(again))}x\nstep: []\n" for begin, again in NUMBER_LIKE),
    HEAD + f"steps:\n  - send: {{flags: A, seq: 1{'0' * 900_000}.5}}\n",
    HEAD + 'matrix: {rows: [{x: "a' + " " * 900_000 + 'b"}]}\nsteps:\n  - send: {flags: A, payload: "${y}"}\n',
    HEAD
    + "matrix: {axes: {a: ["
    + ", ".join(map(str, range(4000)))
    + '], b: ["'
    + "a?" * 400_000
    + '"]}}\nsteps:\n  - send: {flags: A, window: "${a}", payload: "${b}"}\n',
    HEAD
    + "matrix: {axes: {a: ["
    + ", ".join(map(str, range(4000)))
    + "], "
    + ", ".join(f"b{i}: [1]" for i in range(2000))
    + '}}\nsteps:\n  - send: {flags: A, window: "${a}"}\n',
    HEAD
    + "matrix: {rows: [{id: x, "
    + ", ".join(f'v{i}: {{a: "${{v{i + 1}}}", b: "${{v{i + 1}}}"}}' for i in range(30))
    + ', v30: {c: 1}}]}\nsteps: ["${v0}"]\n',
    HEAD
    + "matrix: {rows: [{id: x, "
    + ", ".join(f"v{i}: " + "[" * 17 + f'{{a: "${{v{i + 1}}}"}}' + "]" * 17 for i in range(31))
    + ', v31: 1}]}\nsteps: ["${v0}"]\n',
    HEAD
    + 'matrix: {rows: [{id: x, a: "'
    + "x" * 60000
    + '"}]}\nsteps:\n'
    + '  - {silence: now, why: "-${a}"}\n' * 5000,
    HEAD + "steps:\n" + "  - call: {do: send, payload: 1048576}\n" * 1000,
    HEAD
    + "steps:\n"
    + "".join(
        "  " * (3 * i + 1) + "- repeat:\n" + "  " * (3 * i + 3) + "times: 1000\n" + "  " * (3 * i + 3) + "steps:\n"
        for i in range(6)
    )
    + ("  " * 19 + "- silence: now\n") * 300,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_answered(tmp_path: Path, text: str) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_text(text)
    assert len(said(path)) >= 1


def test_no_such_file(tmp_path: Path) -> None:
    assert said(tmp_path / "absent.yaml") == [f"{tmp_path}/absent.yaml: there is no such file"]
    assert said(tmp_path / "absent") == [f"{tmp_path}/absent: there is no such file"]


def test_another_suffix(tmp_path: Path) -> None:
    (tmp_path / "case.json").write_text("{}")
    assert said(tmp_path / "case.json") == [f"{tmp_path}/case.json: the name of a case ends in .yaml"]


def test_directory_without_cases(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("none yet")
    (tmp_path / "expectations").mkdir()
    (tmp_path / "expectations" / "linux.yaml").write_text("{}")
    assert said(tmp_path) == [f"{tmp_path}: there is no case in this directory: no file named *.yaml"]


def test_a_yml_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    (tmp_path / "case.yml").write_text(GOOD)
    assert said(tmp_path) == [
        f"{tmp_path}/case.yml: the name of a case ends in .yaml, so this would be left out\n    rename it"
    ]


def test_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").symlink_to(tmp_path / "gone")
    assert said(tmp_path / "x.yaml") == [f"{tmp_path}/x.yaml: cannot be read: No such file or directory"]


def test_directory_named_like_a_case(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").mkdir()
    assert said(tmp_path / "x.yaml") == [f"{tmp_path}/x.yaml: there is no case in this directory: no file named *.yaml"]


def test_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.yaml")
    assert said(tmp_path) == [f"{tmp_path}/x.yaml: this is not a regular file"]


def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(GOOD)
    path.chmod(0)
    if os.access(path, os.R_OK):  # root reads everything

        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)
    assert said(path) == [f"{path}: cannot be read: Permission denied"]


def test_unreadable_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    assert said(tmp_path) == [f"{tmp_path}: the directory cannot be read: Permission denied"]


def test_unfit_name(tmp_path: Path) -> None:
    (tmp_path / "a b.yaml").write_text(GOOD)
    assert "the id of this case would be 'a b'" in said(tmp_path)[0]


def test_the_same_id_twice(tmp_path: Path) -> None:
    for top in ("one", "two"):
        (tmp_path / top / "cases").mkdir(parents=True)
        (tmp_path / top / "cases" / "x.yaml").write_text(GOOD)
    loaded = load([tmp_path / "one", tmp_path / "two"])
    assert [case.case_id for case in loaded.cases] == ["x"]
    assert "have the same id, x" in loaded.problems[0].message
