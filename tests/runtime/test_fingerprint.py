"""Names of programs: of code in jaxdave, and of code that is written elsewhere."""

import ast
import importlib.util
import itertools
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import jaxdave
from jaxdave.runtime import fingerprint as fingerprint_module
from jaxdave.runtime.code_origin import PROGRAM_PACKAGES
from jaxdave.runtime.content_digest import NotFingerprintable
from jaxdave.runtime.fingerprint import PACKAGE_ROOT, fingerprint, source_digest

RULES = '''
"""A policy that somebody has written."""
import dataclasses
import enum
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.numpy import add

from jaxdave import policies
from jaxdave.policies.basic import left_to_right

TAU = 0.5
TABLE = np.arange(4.0)
WORDS = {"alpha", "beta", "gamma", "delta"}
SETTINGS = {"steps": (1, 2), "limits": [slice(0, 3), ...]}


class Side(enum.Enum):
    LEFT = "left"
    RIGHT = "right"


class Memory(NamedTuple):
    count: int = 0
    best: float = 0.25

    def doubled(self):
        return self.best * 2


class Base:
    def offset(self):
        return 7


@dataclasses.dataclass(frozen=True)
class Rule(Base):
    width: int = 3
    scale: float = 1.5

    def __call__(self, x):
        return x * self.scale + self.offset() + super().offset()


RULE = Rule()


def helper(x):
    return add(x, TABLE.sum()) * TAU


@functools.cache
def cached(n):
    return n + 11


@jax.jit
def jitted(x):
    return x * 13


def even(n):
    return n == 0 or odd(n - 1)


def odd(n):
    return n != 0 and even(n - 1)


def step(view, memory=Memory(), *, bias=21):
    """What one step commits."""
    def inner(x) -> jax.Array:
        if Side.LEFT.value in WORDS or x in {"one", "two", "three"}:
            return helper(x) + cached(3)
        return jax.vmap(jitted)(jnp.asarray(SETTINGS["steps"]))

    left_to_right(1).step(view, memory)
    policies.static(1).step(view, memory)
    return [inner(y) for y in view], RULE(bias), even(4), memory.doubled()


def with_size(size):
    def inside(x):
        return x + size
    return inside


closure = with_size(31)


def unrelated():
    return 99
'''


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Write a module of its own from text, and import it."""
    numbers = itertools.count()

    def load_module(text: str, name: str | None = None):
        name = name or f"rules_{next(numbers)}"
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load_module


@pytest.fixture
def warnings(caplog, monkeypatch):
    """The log lines of jaxdave in this test, as if it were a process of its own."""
    monkeypatch.setattr(fingerprint_module, "_REASONS", set())
    caplog.set_level(logging.DEBUG, logger="jaxdave")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "jaxdave"]


# The package's own sources.


@pytest.fixture
def package(tmp_path) -> Path:
    """A copy of the package's sources."""
    target = tmp_path / "jaxdave"
    # Only Python files: the folder of demo models is large.
    skipped = shutil.ignore_patterns("__pycache__", "demo", "data", "*.json")
    return Path(shutil.copytree(PACKAGE_ROOT, target, ignore=skipped))


def test_the_sources_are_those_of_the_package(package):
    """Fails if the folder that is digested is not the root of the package."""
    assert PACKAGE_ROOT == Path(jaxdave.__file__).parent
    assert (PACKAGE_ROOT / "decoding" / "loop.py").is_file()
    assert (PACKAGE_ROOT / "core" / "spec.py").is_file()
    # The digest in use is that of the same files elsewhere.
    in_use = fingerprint_module._source_digest.__wrapped__()
    assert in_use == source_digest(package, PROGRAM_PACKAGES)


@pytest.mark.parametrize("package_name", PROGRAM_PACKAGES)
def test_an_edit_of_a_program_package_changes_the_digest(package, package_name):
    before = source_digest(package, PROGRAM_PACKAGES)
    path = sorted((package / package_name).rglob("*.py"))[-1]
    text = path.read_text()
    path.write_text(text + "# edited\n")
    assert source_digest(package, PROGRAM_PACKAGES) != before
    path.write_text(text)
    assert source_digest(package, PROGRAM_PACKAGES) == before
    path.rename(path.with_name("renamed.py"))
    assert source_digest(package, PROGRAM_PACKAGES) != before


@pytest.mark.parametrize("package_name", ["eval", "cli", "io", "training"])
def test_an_edit_elsewhere_does_not(package, package_name):
    before = source_digest(package, PROGRAM_PACKAGES)
    for path in (package / package_name).rglob("*.py"):
        path.write_text(path.read_text() + "# edited\n")
    assert source_digest(package, PROGRAM_PACKAGES) == before


def test_without_sources_nothing_has_a_name(package, monkeypatch, warnings):
    shutil.rmtree(package / "decoding")
    with pytest.raises(NotFingerprintable, match="jaxdave.decoding"):
        source_digest(package, PROGRAM_PACKAGES)
    monkeypatch.setattr(fingerprint_module, "PACKAGE_ROOT", package)
    digest = fingerprint_module._source_digest.__wrapped__
    monkeypatch.setattr(fingerprint_module, "_source_digest", digest)
    assert fingerprint(1) is None
    assert "install jaxdave with its source files" in warnings()[0]


def test_programs_are_made_of_program_packages_only():
    """What these packages import when they run is in the digest, too."""
    for package_name in PROGRAM_PACKAGES:
        for path in (PACKAGE_ROOT / package_name).rglob("*.py"):
            for imported in _imports(ast.parse(path.read_text())):
                assert imported.split(".")[1] in PROGRAM_PACKAGES, (path, imported)


def _imports(tree: ast.AST):
    """Modules of jaxdave that code imports, but for annotations."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        names = []
        if isinstance(node, ast.ImportFrom) and node.module == "jaxdave":
            names = [f"jaxdave.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name for name in names if name.startswith("jaxdave."))
        yield from _imports(node)


# Functions that are written elsewhere.


def test_the_same_text_has_the_same_name_wherever_it_stands(load):
    name = fingerprint(load(RULES).step)
    assert name is not None
    edits = [
        ("", ""),
        ("TAU = 0.5", "# Comments and places do not matter.\n\n\nTAU = 0.5"),
        ("    return 99", "    return 98"),  # of a function that `step` never calls
        ('"alpha", "beta"', '"beta", "alpha"'),
    ]
    for old, new in edits:
        assert fingerprint(load(RULES.replace(old, new)).step) == name, (old, new)
    assert fingerprint(load(RULES, "another_module").step) == name


EDITS = [
    ("a constant", "TAU = 0.5", "TAU = 0.25"),
    ("an array", "np.arange(4.0)", "np.arange(4.0) + 1"),
    ("a set", '"gamma"', '"epsilon"'),
    ("a dictionary", '"steps": (1, 2)', '"steps": (1, 3)'),
    ("a slice", "slice(0, 3)", "slice(0, 4)"),
    ("a helper", "* TAU", "/ TAU"),
    ("an imported function", "import add", "import subtract as add"),
    ("a cached helper", "n + 11", "n + 12"),
    ("a jitted helper", "x * 13", "x * 14"),
    ("a helper of helpers", "even(n - 1)", "even(n - 2)"),
    ("an enumeration", 'LEFT = "left"', 'LEFT = "l"'),
    ("a method", "self.best * 2", "self.best * 3"),
    ("a default of a tuple", "best: float = 0.25", "best: float = 0.125"),
    ("a call method", "x * self.scale", "x / self.scale"),
    ("a field", "scale: float = 1.5", "scale: float = 2.5"),
    ("a base", "return 7", "return 8"),
    ("a default", "bias=21", "bias=22"),
    ("a nested function", "cached(3)", "cached(4)"),
    ("a nested constant", '"three"', '"four"'),
    ("a policy of jaxdave", "policies.static(1)", "policies.threshold(1)"),
    ("a parameter of it", "left_to_right(1)", "left_to_right(2)"),
]


@pytest.mark.parametrize(("what", "old", "new"), EDITS, ids=[e[0] for e in EDITS])
def test_an_edit_of_what_a_function_uses_changes_its_name(load, what, old, new):
    assert RULES.count(old) == 1, what
    edited = fingerprint(load(RULES.replace(old, new)).step)
    assert edited is not None and edited != fingerprint(load(RULES).step)


def test_a_name_depends_on_globals_as_they_are_now(load):
    module = load(RULES)
    before = fingerprint(module.step)
    module.TAU = 0.75
    assert fingerprint(module.step) not in (None, before)
    module.TAU = 0.5
    assert fingerprint(module.step) == before
    module.step.table = 3  # an attribute of the function, which it may read
    assert fingerprint(module.step) not in (None, before)


def test_a_closure_is_what_it_captures(load):
    module = load(RULES)
    assert fingerprint(module.closure) == fingerprint(module.with_size(31)) is not None
    assert fingerprint(module.closure) != fingerprint(module.with_size(32))


def test_instances_are_their_class_and_their_fields(load):
    module = load(RULES)
    assert fingerprint(module.RULE) == fingerprint(module.Rule(3)) is not None
    assert fingerprint(module.RULE) != fingerprint(module.Rule(4))
    other = load(RULES.replace("class Rule(", "class Rule2(Base): x = 1\nclass Rule("))
    assert fingerprint(module.RULE) != fingerprint(other.Rule2())
    assert fingerprint(module.Memory(1)) != fingerprint((1, 0.25))


def test_a_module_of_one_file_counts_by_its_source_and_what_is_used(load):
    source = "import math\nSCALE = 2\ndef twice(x):\n    return x * SCALE\n"
    tools = load(source, "tools")
    text = "import tools\ndef step(x):\n    return tools.twice(x)\n"
    name = fingerprint(load(text).step)
    assert name is not None
    vars(tools)["SCALE"] = 3
    changed = fingerprint(load(text).step)
    assert changed not in (None, name)
    vars(tools)["SCALE"] = 2
    assert fingerprint(load(text).step) == name
    path = Path(str(tools.__file__))
    path.write_text(path.read_text() + "# edited\n")
    assert fingerprint(load(text).step) not in (None, name)


@pytest.mark.parametrize(("home", "is_looked_into"), [("eval", True), ("core", False)])
def test_code_of_jaxdave_is_looked_into_where_its_sources_are_not_digested(
    load, home, is_looked_into
):
    """An edit of a helper in eval/ must change the names of the programs there."""
    text = "def helper(x):\n    return x + 1\ndef score(x):\n    return helper(x)\n"
    names = [
        fingerprint(load(some, f"jaxdave.{home}.invented").score)
        for some in (text, text.replace("+", "-"))
    ]
    assert None not in names and (names[0] != names[1]) is is_looked_into


REFUSED = [
    ("import numpy.testing, xml_unknown as x\ndef step(v):\n    return x.f(v)",
     "'xml_unknown' is a package", "step"),
    ("import tools_unknown as t\ndef step(v):\n    return max(t, v)",
     "'tools_unknown' is used as a value", "step"),
    ("FILE = open(__file__)\ndef step(v):\n    return FILE, v",
     "_io.TextIOWrapper", "step"),
    ("class Thing:\n    pass\nthing = Thing()\ndef step(v):\n    return thing",
     "Thing cannot be identified", "step"),
    ("def inner(v):\n    return open(v)\ndef step(v):\n    return inner(v)",
     "'open' may read", "inner"),
    ("import os\ndef step(v):\n    return os.environ['X']",
     "'os' may read", "step"),
    ("def make():\n    import os\n    return lambda v: os.getcwd()\nstep = make()",
     "'os' may read", "make.<locals>.<lambda>"),
    ("d = 1\nfor _ in range(9999):\n    d = (d,)\ndef step(v):\n    return d",
     "nested too deeply", ""),
    ("def step(v):\n    import tools_unknown\n    return tools_unknown.f(v)",
     "imports tools_unknown when it is called", "step"),
    ("import threading\nlock = threading.Lock()\ndef step(v):\n    return lock",
     "_thread.lock cannot be identified", "step"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "reason", "function"), REFUSED)
def test_what_has_no_name_is_said_once(
    load, tmp_path, warnings, text, reason, function
):
    load("def f(v):\n    return v\n", "tools_unknown")
    module = load("def f(v):\n    return v\n", "xml_unknown")
    module.__path__ = [str(tmp_path)]
    step = load(text).step
    assert fingerprint(step) is None and fingerprint(step, 1) is None
    (line,) = warnings()
    assert reason in line and "\n" not in line
    assert not function or f"{step.__module__}.{function}: " in line


def test_a_user_file_named_like_a_standard_module_is_foreign(tmp_path):
    """It is not taken for Python's own module, whose name would be enough."""
    script = (
        "from jaxdave.runtime.fingerprint import fingerprint\n"
        "import this\n"
        "print(fingerprint(this.step))\n"
    )
    names = set()
    for text in ("def step(v):\n    return v", "def step(v):\n    return -v"):
        (tmp_path / "this.py").write_text(text)
        names.add(_output_of(script, cwd=tmp_path))
    assert len(names) == 2 and "None" not in names


@pytest.mark.parametrize("seeds", [("1", "2")])
def test_another_process_gives_the_same_name(tmp_path, seeds):
    """Also where sets are in another order, and where the text is the main script."""
    (tmp_path / "rules.py").write_text(RULES)
    imported = (
        "from jaxdave.runtime.fingerprint import fingerprint\n"
        "import rules\n"
        "print(fingerprint(rules.step))\n"
    )
    main = RULES + (
        "from jaxdave.runtime.fingerprint import fingerprint\n"
        "print(fingerprint(step))\n"
    )
    names = {
        _output_of(script, cwd=tmp_path, PYTHONHASHSEED=seed)
        for script, seed in ((imported, seeds[0]), (imported, seeds[1]), (main, "3"))
    }
    assert len(names) == 1 and names != {"None"}


def _output_of(script: str, cwd: Path, **environment: str) -> str:
    path = os.pathsep.join([str(cwd), *sys.path])
    return subprocess.check_output(
        [sys.executable, "-c", script],
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, **environment},
    ).strip()
