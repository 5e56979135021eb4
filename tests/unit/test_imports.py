"""The table of import directions in docs/architecture.md, line by line, over the whole package."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import conform

PACKAGE = Path(conform.__file__).parent
TABLE = PACKAGE.parent / "docs" / "architecture.md"
ROW = re.compile(r"^\| `conform/(\w+)/` \|[^|]*\| ([^|]+) \|$", re.MULTILINE)


def table(text: str) -> dict[str, set[str] | None]:
    """Package -> the packages or modules of conform that it may import, ``None`` for all."""
    out: dict[str, set[str] | None] = {}
    for name, allowed in ROW.findall(text):
        words = allowed.strip()
        if words == "all":
            out[name] = None
        elif words == "all above":
            out[name] = set(out)
        elif words == "nothing of conform":
            out[name] = set()
        else:
            out[name] = set(words.split(", "))
    return out


def imports(source: str, module: str, is_package: bool = False) -> Iterator[tuple[str, int]]:
    """Each module that the module *module* names in an import, with its line; for ``from a import b``, ``a.b``."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{start}.{alias.name}", node.lineno
        elif isinstance(node, ast.Call):
            # The other ways to import: by a name given as text.
            called = ast.unparse(node.func)
            if called in ("__import__", "importlib.import_module", "import_module") and node.args:
                named = node.args[0]
                yield (named.value if isinstance(named, ast.Constant) else "?"), node.lineno


def violations(source: str, module: str, allowed: dict[str, set[str] | None], is_package: bool = False) -> list[str]:
    """What *module* imports against the table."""
    parts = module.split(".")
    own = parts[1] if len(parts) > 1 else ""
    may = allowed.get(own)
    out = []
    for name, line in imports(source, module, is_package):
        top, *rest = name.split(".")
        words = f"{module}:{line} imports {name}"
        outside = top == "scapy" and own != "link"
        if own in ("tcp", "case", "engine"):
            outside |= top in ("socket", "_socket", "asyncio", "selectors")
        if name == "?" and may is not None:
            out.append(f"{module}:{line} imports what only a run can tell")
        elif outside:
            out.append(words)
        elif top == "conform" and rest and own and may is not None:
            # ``from conform import __version__`` and one's own package are always allowed.
            if not (PACKAGE / rest[0]).is_dir() or rest[0] == own:
                continue
            if rest[0] not in may and ".".join(rest[:2]) not in may:
                out.append(words)
    return out


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE.parent).with_suffix("")
        yield ".".join(relative.parts).removesuffix(".__init__"), path


ALLOWED = table(TABLE.read_text(encoding="utf-8"))


def test_the_table_names_every_package() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages <= set(ALLOWED)
    assert set(ALLOWED) == {"tcp", "case", "requirements", "engine", "link", "stacks", "run", "report", "cli"}


@pytest.mark.parametrize(("module", "path"), [pytest.param(m, p, id=m) for m, p in modules()])
def test_a_module_imports_what_it_may(module: str, path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert violations(source, module, ALLOWED, path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("conform.tcp.x", "import conform.case.model", "imports conform.case.model"),
        ("conform.tcp.x", "from conform.engine import events", "imports conform.engine.events"),
        ("conform.tcp.x", "from conform import engine", "imports conform.engine"),
        ("conform.tcp.x", "from .. import engine", "imports conform.engine"),
        ("conform.tcp.x", "from ..engine.session import Session", "imports conform.engine.session.Session"),
        ("conform.tcp.x", "def f():\n    import socket", "conform.tcp.x:2 imports socket"),
        ("conform.case.x", "from socket import socket", "imports socket.socket"),
        ("conform.engine.x", "import scapy.all", "imports scapy.all"),
        ("conform.engine.x", "if TYPE_CHECKING:\n    from conform.run import plan", "imports conform.run.plan"),
        ("conform.engine.x", "__import__('scapy')", "imports scapy"),
        ("conform.engine.x", "importlib.import_module(name)", "imports what only a run can tell"),
        ("conform.requirements.x", "from conform.tcp import states", "imports conform.tcp.states"),
        ("conform.link.x", "from conform.engine import session", "imports conform.engine.session"),
        ("conform.link.x", "from conform.case import model", "imports conform.case.model"),
        ("conform.stacks.x", "from conform.run import worker", "imports conform.run.worker"),
        ("conform.stacks.x", "from scapy.all import IP", "imports scapy.all.IP"),
        ("conform.report.x", "from conform.run import worker", "imports conform.run.worker"),
        ("conform.run.x", "from conform.report import console", "imports conform.report.console"),
        ("conform.run.x", "from conform.cli import main", "imports conform.cli.main"),
        ("conform.cli.x", "from scapy.all import IP", "imports scapy.all.IP"),
        ("conform.__main__", "import scapy", "imports scapy"),
    ],
)
def test_what_goes_against_the_table_is_noticed(module: str, source: str, said: str) -> None:
    (found,) = violations(source, module, ALLOWED)
    assert said in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("conform.case.x", "from conform.tcp import states\nfrom conform.requirements import catalogue"),
        (
            "conform.tcp.x",
            "from conform.tcp.segment import Segment\nfrom . import states\nfrom conform import __version__",
        ),
        (
            "conform.link.x",
            "import socket\nimport scapy.all\nfrom conform.engine import events\nfrom conform.tcp import segment",
        ),
        ("conform.link.x", "from conform.engine.events import Arrived"),
        ("conform.stacks.x", "import socket\nfrom conform.link import netns"),
        ("conform.report.x", "from conform.run import events\nfrom conform.run.runfile import read"),
        ("conform.cli.x", "from conform.run import worker\nfrom conform.report import console"),
    ],
)
def test_what_the_table_allows_is_allowed(module: str, source: str) -> None:
    assert violations(source, module, ALLOWED) == []
