"""Every block of code in the documentation runs and prints what it says.

The README's and the quick start's are run in CI by `.ci/newcomer`, in the environment
that the README makes; those of the other pages are slow tests.
"""

import pytest
from helpers import doc_blocks as blocks

FIRST_PAGES = ("README.md", "docs/quick_start.md")


def pages(language: str) -> list[str]:
    """The pages that have such blocks, but for a newcomer's first ones."""
    found = sorted(
        str(path.relative_to(blocks.ROOT))
        for path in (blocks.ROOT / "docs").rglob("*.md")
    )
    others = [page for page in found if page not in FIRST_PAGES]
    return [page for page in others if blocks.runnable(page, language)]


@pytest.mark.slow
@pytest.mark.parametrize("page", pages("python"))
def test_python_blocks(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks.run_python(page)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a checkpoint as its family publishes it."""
    folder = tmp_path_factory.mktemp("shell")
    blocks.make_checkpoint(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", pages("sh"))
def test_shell_blocks(page, folder):
    blocks.run_shell(page, folder)


@pytest.mark.parametrize("page", FIRST_PAGES)
def test_a_newcomers_pages_are_run_whole(page):
    found = blocks.read_blocks(page)
    assert {block.language for block in found} >= {"python", "sh"}
    assert not any(block.reason for block in found)
    setup = [block for block in found if "-m venv" in block.code]
    assert setup and all(block.language == "sh" for block in setup)


def test_a_wrong_output_is_noticed(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1 + 1)\n```\n\n```text\n2\n```\n")
    monkeypatch.setattr(blocks, "ROOT", tmp_path)
    blocks.run_python("page.md")
    page.write_text(page.read_text().replace("\n2\n", "\n3\n"))
    with pytest.raises(AssertionError, match="printed 2"):
        blocks.run_python("page.md")
    page.write_text("```sh\nfalse | true\n```\n")
    with pytest.raises(AssertionError, match="false"):
        blocks.run_shell("page.md", tmp_path)


def test_the_readme_is_short():
    text = (blocks.ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
