"""`snella data PATH`: what is found in a data set."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from snella.cli.commands import Data
from snella.cli.exit import Found
from snella.cli.flags import parse_command
from snella.config.schema import TrainConfig
from snella.config.validation import validate
from snella.errors import UserError


def show_data(args: list[str]) -> Found:
    """Print what is found, and return it. Raises UserError."""
    command = parse_command(Data, args)
    if not command.data:
        raise UserError("no data: snella data PATH names a folder, a manifest or a known data set")

    from snella.console import Terminal, print_line
    from snella.report.sheet import check_sheet, contact_sheet
    from snella.runs.prepare import SHEET, doubts, pictures_by_name, read_run_data
    from snella.tasks.registry import task_for, task_named

    if command.sheet is not None:
        check_sheet(Path(command.sheet))
    given = {name: value for name, value in dataclasses.asdict(command).items() if name not in ("strict", "sheet")}
    name = command.task or ("classify" if command.crops else task_for(command.data))
    config = TrainConfig.of(**given | {"task": name})
    validate(config)
    found = read_run_data(config, Terminal(stderr=True))
    Terminal().print(task_named(name).describe(found), soft_wrap=True)  # a path broken over lines cannot be copied
    if command.sheet is not None:
        title = f"{found.root}: {found.layout}"
        contact_sheet(pictures_by_name(found), Path(command.sheet), title=title, line=SHEET)
        print_line(Terminal(), f"contact sheet in {command.sheet}")
    suspected = doubts(config, found)
    for line in suspected:
        print_line(Terminal(), line)
    images = {split: len(images) for split, images in found.splits.items()}
    said = {"data": command.data, "root": str(found.root), "layout": found.layout, "task": name}
    said |= {"classes": list(found.classes), "images": images, "notes": list(found.notes)}
    said |= {"unreadable": list(map(str, found.skipped)), "suspicions": suspected, "sheet": command.sheet}
    return Found(said, 1 if command.strict and suspected else 0)
