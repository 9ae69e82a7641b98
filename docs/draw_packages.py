"""Draw the packages of jaxdave and their imports into docs/architecture.md.

    python docs/draw_packages.py          # redraw the picture
    python docs/draw_packages.py --check  # fail if it is not up to date

The picture is a Mermaid flowchart between two markers. Arrows run from a package to
those that it imports; an arrow that follows from others (transitively) is left out.
"""

import argparse
import sys
from pathlib import Path

import grimp

PAGE = Path(__file__).parent / "architecture.md"
BEGIN, END = "<!-- packages: begin -->", "<!-- packages: end -->"


def package_imports() -> dict[str, set[str]]:
    """The packages of jaxdave, each with the packages that it imports."""
    graph = grimp.build_graph("jaxdave", "jaxdave_convert", cache_dir=None)
    packages = {"jaxdave_convert"} | {
        child for child in graph.find_children("jaxdave")
        if graph.find_children(child)
    }  # fmt: skip
    imports: dict[str, set[str]] = {}
    for package in packages:
        members = {package, *graph.find_descendants(package)}
        imported = {
            target
            for member in members
            for target in graph.find_modules_directly_imported_by(member)
        }
        imports[package] = {
            other
            for other in packages - {package}
            if any(t == other or t.startswith(f"{other}.") for t in imported)
        }
    return imports


def reduced(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """The imports without those that follow from others."""

    def reach(package: str) -> set[str]:
        return set().union(*({o} | reach(o) for o in imports[package]))

    return {
        package: {
            other
            for other in others
            if not any(other in reach(third) for third in others - {other})
        }
        for package, others in imports.items()
    }


def picture() -> str:
    """The flowchart as Mermaid source."""
    lines = ["```mermaid", "flowchart TD"]
    for package, others in sorted(reduced(package_imports()).items()):
        name = package.removeprefix("jaxdave.")
        if not others:
            lines.append(f"  {name}")
        for other in sorted(others):
            lines.append(f"  {name} --> {other.removeprefix('jaxdave.')}")
    return "\n".join([*lines, "```"])


def main() -> int:
    """Redraw the picture, or check it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    redrawn = f"{before}{BEGIN}\n{picture()}\n{END}{after}"
    if check:
        if redrawn != page:
            print(f"{PAGE.name} is out of date; run python docs/draw_packages.py")
        return int(redrawn != page)
    PAGE.write_text(redrawn)
    return 0


if __name__ == "__main__":
    sys.exit(main())
