"""Links from docs/ to files outside it: right on the site as they are in the repository.

A file that a page links to is put on the site, as it is, under `repository/`; README.md stands for the start page.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

# (text](target) up to an anchor or a blank
LINK = re.compile(r"(?<=\]\()(?P<path>[^)\s#:]+)(?=[)#\s])")
START = "README.md"
PUBLISHED = "repository"


def outside(page: Path, root: Path, target: str) -> str | None:
    """Return the path in the repository that a page's link leads to; None where it stays in docs/ or leads nowhere."""
    found = (page.parent / target).resolve()
    if found.is_relative_to(root / "docs") or not found.is_relative_to(root) or not found.is_file():
        return None
    return found.relative_to(root).as_posix()


def on_files(files: Any, config: Any) -> Any:
    """Put the files outside docs/ that pages link to on the site; Markdown as text, or its links would be dead."""
    root = Path(config.config_file_path).parent
    for page in list(files.documentation_pages()):
        if page.abs_src_path is None:
            continue
        for link in LINK.finditer(page.content_string):
            name = outside(Path(page.abs_src_path), root, link["path"])
            if name is not None and name != START and files.get_file_from_path(_place(name)) is None:
                files.append(File.generated(config, _place(name), abs_src_path=str(root / name)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Lead links out of docs/ to where these files are on the site."""
    if page.file.abs_src_path is None:
        return markdown
    root, up = Path(config.config_file_path).parent, "../" * page.file.src_uri.count("/")

    def led(link: re.Match[str]) -> str:
        name = outside(Path(page.file.abs_src_path), root, link["path"])
        return link["path"] if name is None else up + ("index.md" if name == START else _place(name))

    return LINK.sub(led, markdown)


def _place(name: str) -> str:
    return f"{PUBLISHED}/{name}.txt" if name.endswith((".md", ".py")) else f"{PUBLISHED}/{name}"
