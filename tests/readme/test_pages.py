"""The site names what there is, and all that there is: commands, options, settings, recipes, public names."""

from __future__ import annotations

import argparse
import importlib
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import pixlex
import pixlex.api
import pixlex.losses
import pixlex.search
from pixlex.cli import COMMANDS, build_parser
from pixlex.config.run import FAMILIES, describe_fields, find_recipe, recipe_names


@pytest.fixture(scope="module")
def site_pages(checkout: Path) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(checkout / "scripts"))
        return importlib.import_module("site_pages")


@pytest.fixture(scope="module")
def guides(checkout: Path) -> dict[str, str]:
    """The pages that say what to type."""
    paths = [
        checkout / "README.md",
        *checkout.glob("docs/tutorials/*.md"),
        *checkout.glob("docs/how-to/*.md"),
    ]
    paths += [checkout / f"docs/{name}.md" for name in ("index", "scale", "release")]
    return {path.relative_to(checkout).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Each command's parser."""
    found = {}
    for name in COMMANDS:
        parser = build_parser()
        for word in name.split():
            (inside,) = (one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
            parser = inside.choices[word]
        found[name] = parser
    return found


def test_every_option_of_every_command_is_on_its_page(site_pages: ModuleType) -> None:
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", site_pages.commands_page(), re.M | re.S))
    assert list(sections) == list(COMMANDS)
    for name, parser in parsers().items():
        for action in parser._actions:
            if action.help != argparse.SUPPRESS and "--help" not in action.option_strings:
                shown = action.option_strings[-1] if action.option_strings else action.metavar
                assert f"\n| `{shown}" in sections[name], (name, shown)
        assert "%(" not in sections[name]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_setting_is_on_its_page(site_pages: ModuleType, family: str) -> None:
    found = list(site_pages.settings_of(FAMILIES[family]))
    expected = list(describe_fields(FAMILIES[family]))
    assert [(name, meaning.startswith(sentence)) for (name, _, meaning), (_, _, sentence) in zip(
        found, expected, strict=True
    )] == [(name, True) for name, _, _ in expected]  # fmt: skip
    page = site_pages.settings_page(family)
    assert all(f"\n| `{name}` |" in page for name, _, _ in expected)


def test_choices_and_ranges_are_part_of_a_meaning(site_pages: ModuleType) -> None:
    meanings = {name: meaning for name, _, meaning in site_pages.settings_of(FAMILIES["lqae"])}
    assert meanings["train.precision"].endswith("One of auto, bf16, fp16, fp32.")
    assert meanings["train.steps"].endswith("It must be above 0.")


def test_every_recipe_is_on_its_page(site_pages: ModuleType) -> None:
    page = site_pages.recipes_page()
    for name in recipe_names():
        assert f"\n## {name} {{" in page
        assert find_recipe(name).read_text(encoding="utf-8").strip() in page
        (row,) = re.findall(rf"^\| \[`{name}`\]\(#([\w-]+)\) \| (.{{20,}}) \|$", page, re.M)
        assert f"{{ #{row[0]} }}" in page


def test_every_public_name_is_in_the_reference(checkout: Path) -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in checkout.glob("docs/reference/*.md"))
    public = {*pixlex.__all__, *pixlex.api.__all__, *pixlex.search.__all__} - {"__version__"}
    assert [name for name in sorted(public) if not re.search(rf"[.`]{name}\b", text)] == []
    for path in re.findall(r"^::: (\S+)$", text, re.M):
        module, _, name = path.rpartition(".")
        found = importlib.import_module(path) if path in ("pixlex.losses", "pixlex.nn.codebook") else getattr(
            importlib.import_module(module), name
        )  # fmt: skip
        assert found.__doc__, path


def test_the_site_holds_every_page(checkout: Path, site_pages: ModuleType) -> None:
    def places(part: object) -> list[str]:
        if isinstance(part, str):
            return [part]
        return [place for one in (part.values() if isinstance(part, dict) else part) for place in places(one)]

    nav = places(yaml.safe_load((checkout / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    written = {path.relative_to(checkout / "docs").as_posix() for path in (checkout / "docs").rglob("*.md")}
    assert sorted(nav) == sorted(written | site_pages.pages().keys())


def test_links_lead_somewhere(checkout: Path, guides: dict[str, str], site_pages: ModuleType) -> None:
    made = site_pages.pages().keys()
    for page, text in guides.items():
        for link in re.findall(r"\]\((?!http|#)([^)#]+)[^)]*\)", text):
            path = ((checkout / page).parent / link).resolve()
            is_made = path.is_relative_to(checkout / "docs") and (
                path.relative_to(checkout / "docs").as_posix() in made
            )
            assert is_made or path.is_file(), f"{page}: {link}"


def test_what_guides_name_is_there(checkout: Path, guides: dict[str, str]) -> None:
    """Commands, options, settings, recipes and extras in the middle of a sentence."""
    known = parsers()
    options = {
        name: {one for action in parser._actions for one in action.option_strings}
        for name, parser in known.items()
    }
    settings = {name for kind in FAMILIES.values() for name, _, _ in describe_fields(kind)}
    described = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    targets = re.findall(r"^([a-z-]+):", (checkout / "Makefile").read_text(encoding="utf-8"), re.M)
    wrong = []
    for page, text in guides.items():
        for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text):
            if code.startswith("pixlex ") and code.split()[1].islower():
                words = code.split()[1:]
                name = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
                asked = [word for word in words if word.startswith("--")]
                fine = (name in known or name == "evaluate") and set(asked) <= options.get(name, set())
            elif code.startswith("--") and not code.startswith(("--nnodes", "--nproc", "--rdzv")):
                fine = any(code.split()[0].partition("=")[0] in several for several in options.values())
            elif re.fullmatch(r"(?:train|data|eval|objective|model)\.[a-z_.]+(?:=.*)?", code):
                fine = code.partition("=")[0] in settings
            elif re.fullmatch(r"(?:lqae|cbvila|mae|frozen|finetune)/[\w-]+", code):
                fine = code in recipe_names()
            elif code.startswith("make "):
                fine = code.split()[1] in targets
            else:
                continue
            if not fine:
                wrong.append(f"{page}: {code}")
        extras = set(re.findall(r"extra `(\w+)`", text)) - described["optional-dependencies"].keys()
        wrong += [f"{page}: extra {one}" for one in extras]
    assert wrong == []


def test_the_oldest_versions_are_those_of_the_bounds(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(checkout / "scripts"))
    oldest = importlib.import_module("oldest").oldest
    project = {
        "dependencies": ["torch>=2.13,<3", "Jinja2"],
        "optional-dependencies": {
            "a": ["jsonargparse[signatures]>=4.49,<6", "x<2,>=1.5"],
            "b": ["pixlex[a]"],
        },
    }
    assert list(oldest(project)) == ["jsonargparse==4.49", "torch==2.13", "x==1.5"]
