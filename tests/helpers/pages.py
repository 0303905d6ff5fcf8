"""Code blocks of README.md and of the pages in docs/, and how to run them on a tiny backbone."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
KINDS = ("WHO", "WHERE", "WHEN")


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language, as they stand."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def commands(page: Path) -> list[str]:
    """The command lines of a page, without comments."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    return [line.partition("#")[0].strip() for line in lines]


def words_of(page: Path, tiny_bert: Path) -> list[list[str]]:
    """The `loraens` commands of a page, of which only backbone and epochs are made small, and which
    log nothing unless they say where.
    """
    commands_ = []
    for command in commands(page):
        if not command.startswith("loraens "):
            continue
        words = shlex.split(command)[1:]
        if words[0] in ("fit", "sweep"):
            words += ["--model.backbone", str(tiny_bert), "--trainer.max_epochs", "1"]
            words += ["--trainer.enable_progress_bar", "false"]
            if "--trainer.logger" not in words:
                words += ["--trainer.logger", "false"]
            if "configs/" in command and "DIR" not in words:
                words += ["--data.root", "DIR"]
        if words[0] == "build":
            words += ["--backbone", str(tiny_bert)]
        commands_.append(words)
    return commands_


def write_questions(directory: Path) -> None:
    """The reader's own files: train.csv and dev.csv with texts, types and numbers of likes, and
    more.csv with texts alone.
    """
    for split, count in (("train", 10), ("dev", 12)):
        lines = ["text,type,likes"]
        for number in range(count):
            lines += [
                f"{split} what {number} {kind}?,{kind},{number + index}"
                for index, kind in enumerate(KINDS)
            ]
        (directory / f"{split}.csv").write_text("\n".join(lines) + "\n")
    (directory / "more.csv").write_text("text\nwhat else?\nwho, then?\n")


def run_python(page: Path, tiny_bert: Path) -> None:
    """Run the Python blocks of a page one after another, in one namespace, on a tiny backbone."""
    namespace = {"__name__": "__main__"}
    for number, block in enumerate(blocks(page, "python"), start=1):
        code = block.replace('"minilm"', repr(str(tiny_bert)))
        exec(compile(code, f"{page.name}, Python block {number}", "exec"), namespace)
