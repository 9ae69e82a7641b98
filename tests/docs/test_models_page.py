"""The page of models has a row for every family, and every reason for a refusal."""

from helpers import doc_blocks as blocks

from jaxdave.io.family_records import FAMILIES, UNSUPPORTED

PAGE = (blocks.ROOT / "docs" / "models.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ")]


def test_every_family_has_a_row():
    for name in FAMILIES:
        assert any(row.startswith(f"| `{name}` |") for row in ROWS), name


def test_every_reason_is_the_one_that_is_printed():
    for kind, reason in UNSUPPORTED.items():
        rows = [row for row in ROWS if f"`{kind}`" in row]
        assert any(reason in row for row in rows), (kind, reason)
