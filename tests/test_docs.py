"""The pages of the documentation: what they show runs, and what they link to is there.

Commands of the README run in test_readme.py.
"""

import re
from pathlib import Path

import pytest
import yaml
from helpers.pages import DOCS, PAGES, README, ROOT, blocks, run_python, words_of, write_questions

import loraens
from loraens.cluster import Cluster
from loraens.registry import Registry

NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
TEXTS = [*NAMES, "CONTRIBUTING.md", "CHANGELOG.md", "results/README.md"]


def with_blocks(language: str) -> list[str]:
    return [name for name in NAMES if blocks(ROOT / name, language)]


@pytest.fixture
def directory(tmp_path, corpus, monkeypatch):
    """A working directory as the reader has it: the configs, the course's files in DIR, and files
    of their own.
    """
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "DIR").symlink_to(corpus)
    monkeypatch.chdir(tmp_path)
    write_questions(tmp_path)
    return tmp_path


@pytest.fixture
def clean_registries():
    """What a page registers is forgotten after it."""
    registries = [
        value for name in loraens.__all__ if isinstance(value := getattr(loraens, name), Registry)
    ]
    before = {registry.group: set(registry) for registry in registries}
    yield
    for registry in registries:
        for name in set(registry) - before[registry.group]:
            registry.unregister(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", with_blocks("python"))
def test_python_runs(name, directory, tiny_bert, clean_registries, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run_python(ROOT / name, tiny_bert)


@pytest.mark.parametrize("name", with_blocks("python"))
def test_python_lines_are_short(name):
    lines = [line for block in blocks(ROOT / name, "python") for line in block.splitlines()]
    assert [line for line in lines if len(line) > 100] == []


def test_toys_are_short():
    toys = [block for block in blocks(DOCS / "how-to" / "extend.md", "python") if "class " in block]
    assert len(toys) >= 5
    assert max(len(toy.splitlines()) for toy in toys) <= 45


@pytest.mark.slow
def test_the_commands_of_the_start_run(run_command, directory, tiny_bert):
    """Those of the how-to pages go on from what these leave."""
    pages = ("index", "how-to/sweep", "how-to/ensemble", "how-to/deploy", "how-to/wandb")
    (block,) = blocks(DOCS / "index.md", "yaml")
    Path("questions.yaml").write_text(block)
    shown = []
    for name in pages:
        for words in words_of(DOCS / f"{name}.md", tiny_bert):
            if words[0] != "wandb-sync":  # there is nothing to upload; see test_wandb_sync.py
                assert run_command(*words) == 0, words
                shown.append(words[0])
    commands = {"sweep", "ensemble", "evaluate", "predict", "report", "compare", "fit", "export"}
    assert commands | {"distil"} == set(shown)
    assert len(Path("predictions.csv").read_text().splitlines()) == 37


@pytest.mark.slow
def test_the_commands_of_one_command_run(run_command, directory, tiny_bert):
    shown = words_of(DOCS / "how-to" / "build.md", tiny_bert)
    assert [words[0] for words in shown] == ["build", "predict", "evaluate"]
    for words in shown:
        assert run_command(*words) == 0, words


@pytest.mark.slow
def test_the_commands_of_many_devices_run(run_command, directory, tiny_bert):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    (block,) = blocks(DOCS / "index.md", "yaml")
    Path("questions.yaml").write_text(block)
    with Cluster(2, cpus=1):  # once for all commands
        shown = words_of(DOCS / "how-to" / "many.md", tiny_bert)
        assert [words[0] for words in shown] == ["sweep", "sweep", "predict"]
        for words in shown:
            assert run_command(*words) == 0, words
    assert len(Path("predictions.csv").read_text().splitlines()) == 37


@pytest.mark.slow
def test_the_task_of_the_users_own_runs(run_command, directory, tiny_bert):
    (block,) = blocks(DOCS / "how-to" / "data.md", "yaml")
    Path("questions.yaml").write_text(block)
    assert yaml.safe_load(block)["data"]["init_args"]["class_names"] == ["WHO", "WHERE", "WHEN"]
    small = ("--model.backbone", tiny_bert, "--trainer.max_epochs", 1)
    quiet = ("--trainer.logger", "false", "--trainer.enable_progress_bar", "false")
    assert run_command("fit", "--config", "questions.yaml", *small, *quiet) == 0


@pytest.mark.parametrize("name", TEXTS)
def test_links_are_relative_and_lead_somewhere(name):
    page = ROOT / name
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, target


def test_every_page_is_in_the_navigation_and_every_public_name_in_the_reference():
    text = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES:
        if page != README:
            assert page.relative_to(DOCS).as_posix() in text
    reference = (DOCS / "api.md").read_text()
    for name in loraens.__all__:
        assert re.search(rf"loraens\.{name}\b|`{name}`", reference), name


def test_contributing_fits_one_screen_and_knows_the_registries():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert len(text.splitlines()) <= 80
    for name in loraens.__all__:
        if name.isupper() and name not in ("SST", "STS"):
            assert f"`{name}`" in text
    for test in set(re.findall(r"`(tests/test_extend\w*\.py)`", text)):
        assert (ROOT / test).is_file()
