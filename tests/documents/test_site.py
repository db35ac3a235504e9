"""The parts of the site that are generated: keys, links of shared files, notebooks, pictures."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from smope.config.conf_files import GROUPS, choices
from smope.metrics.scores import SCORES
from tests.documents.fences import ROOT

DOCS = ROOT / "docs"


def load(folder: str, name: str) -> Any:
    """A module of docs/, which is no package. Modules of the same names, such as the benchmarks',
    stay what they are.
    """
    names = [path.stem for path in (DOCS / folder).glob("*.py")]
    others = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(DOCS / folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(DOCS / folder))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(others)


keys = load("hooks", "keys")
shared_files = load("hooks", "shared_files")
notebooks = load("hooks", "notebooks")
scores = load("hooks", "scores")
api = load("hooks", "api")
drawing = load("pictures", "draw")


@pytest.mark.parametrize("name", sorted(drawing.PICTURES))
def test_a_picture_is_what_its_script_draws(name: str) -> None:
    stored = (DOCS / "pictures" / f"{name}.svg").read_text(encoding="utf-8")
    assert drawing.PICTURES[name]() == stored, "python docs/pictures/draw.py"


def test_every_stored_picture_has_a_script_and_a_page() -> None:
    stored = {path.stem for path in (DOCS / "pictures").glob("*.svg")}
    assert stored == set(drawing.PICTURES)
    pages = "".join(path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md"))
    assert stored == set(re.findall(r"pictures/(\w+)\.svg", pages))


def test_the_picture_of_a_report_has_the_headings_of_today() -> None:
    """Its own text chunk has those that it shows; a browser is needed to take it."""
    path = DOCS / "pictures" / "report_page.png"
    assert path.stat().st_size < 100_000
    with Image.open(path) as picture:
        headings = json.loads(picture.text["Headings"])
    sources = (ROOT / "smope" / "report" / "sections").glob("*.py")
    titles = "".join(source.read_text(encoding="utf-8") for source in sources)
    assert len(headings) > 10
    assert [name for name in headings if f'"{name}"' not in titles] == [], (
        "python docs/pictures/report_page.py RUN"
    )
    pages = "".join(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md"))
    assert "pictures/report_page.png" in pages


def test_the_pictures_show_one_run_of_each_method() -> None:
    measured = load("pictures", "drawing").measured()
    assert sorted(measured["accuracy_matrix"]) == ["finetune", "ncm", "ridge", "smope"]
    for matrix in measured["accuracy_matrix"].values():
        assert [len(row) for row in matrix] == [1, 2, 3, 4, 5]
    for entry in measured["digits"]:
        best = sorted(range(25), key=lambda expert: -entry["scores"][expert])[:5]
        assert set(entry["experts"]) == set(best)


@pytest.mark.parametrize("group", GROUPS)
def test_every_key_of_conf_is_on_its_page(group: str) -> None:
    page = keys.pages(ROOT / "conf")[f"reference/keys/{group}.md"]
    for name in choices(group, [ROOT / "conf"]):
        _, _, section = page.partition(f"\n## {group}={name}\n")
        section = section.partition("\n## ")[0]
        values = yaml.safe_load((ROOT / "conf" / group / f"{name}.yaml").read_text()) or {}
        for key in values.keys() - {"defaults", "_target_"}:
            assert f"| `{group}.{key}` |" in section, f"{group}={name}: {key}"


def test_comments_over_several_lines_belong_to_one_key() -> None:
    text = "a: 1                # first\n                    # second\nb: [1, 2]\nc:\n"
    assert keys.rows(text) == [("a", "1", "first second"), ("b", "[1, 2]", ""), ("c", "", "")]


def test_links_between_files_become_links_between_pages() -> None:
    where = {"benchmarks/results/a.md": "results/a.md", "docs/x.md": "x.md"}
    text = "[a](results/a.md#part) [x](../docs/x.md) [gone](other.py) [web](https://a.b/c)"
    linked = shared_files.with_links_of_site(
        text, "benchmarks/README.md", "results/index.md", where
    )
    assert linked == "[a](a.md#part) [x](../x.md) gone [web](https://a.b/c)"


def test_every_file_of_results_is_on_the_site_and_in_its_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for path in (ROOT / "benchmarks" / "results").glob("*.md"):
        assert f"results/{path.name}" in shared_files.pages(ROOT)
        assert f"results/{path.name}" in menu


def test_every_notebook_is_in_the_gallery_with_its_pictures() -> None:
    folder = ROOT / "notebooks"
    pages, pictures = notebooks.pages(folder), notebooks.pictures(folder)
    for path in folder.glob("*.ipynb"):
        shown = re.findall(r"\]\(([\w.-]+\.png)\)", pages[f"gallery/{path.stem}.md"])
        assert shown
        assert {f"gallery/{name}" for name in shown} <= pictures.keys()


def test_every_score_is_defined() -> None:
    table = scores.table()
    assert all(f"| `{name}` |" in table for name in SCORES)


def test_every_method_and_router_is_in_the_api() -> None:
    pages = api.pages(ROOT / "conf")
    for group in ("method", "router"):
        for path in (ROOT / "conf" / group).glob("[!_]*.yaml"):
            target = yaml.safe_load(path.read_text(encoding="utf-8"))["_target_"]
            assert f"::: {target}\n" in pages[f"reference/api/{group}s.md"]


def test_pages_name_no_folder_of_a_machine() -> None:
    for path in [*DOCS.rglob("*.md"), *DOCS.rglob("*.py"), *DOCS.rglob("*.svg")]:
        assert not re.search(r"/(home|root|work|tmp)/", path.read_text(encoding="utf-8")), path


def test_the_citation_names_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    version = Path(ROOT / "smope" / "version.py").read_text(encoding="utf-8")
    assert f'__version__ = "{citation["version"]}"' in version


def test_the_chain_of_the_readme_is_that_of_the_tutorial() -> None:
    """The tutorial's is run on real photographs, to the answers of the server."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Use it")[2]
    tutorial = (ROOT / "docs" / "tutorials" / "teach.md").read_text(encoding="utf-8")
    first = re.compile(r"```bash\n(.*?)```", re.DOTALL)
    assert first.findall(readme)[0] == first.findall(tutorial)[0]
