"""The flags of `snella compare` as a plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from snella.cli.commands import Compare
from snella.cli.flags import divided, value_of
from snella.compare.plan import Plan, PlannedTask, backbone_folder
from snella.config.fields import flag, read_number
from snella.config.method import METHODS
from snella.config.schema import TrainConfig, source_name
from snella.config.validation import choice_error, validate
from snella.errors import UserError

T = TypeVar("T")

# what a comparison sets itself -> the flag that is there instead
SET_HERE = {"method": "--methods", "lr": "--lr-grid", "seed": "--seeds"}
SET_HERE |= dict.fromkeys(("test", "resume", "overwrite", "accept_data", "estimate", "devices", "push", "private"), "")


def make_plan(
    command: Compare, shared: Sequence[str], settings: Callable[[Sequence[str], TrainConfig | None], TrainConfig]
) -> Plan:
    """Return the plan that flags describe.

    Args:
        command: its flags, as typed (`snella.cli.main.Compare`).
        shared: the other flags, of `snella train`.
        settings: (flags of `snella train`, defaults; None: those of the recipe named in them) -> the config.

    Raises:
        UserError: a method, seed, rate or setting that cannot be.
    """
    for name, instead in SET_HERE.items():
        if flag(name) in {word.partition("=")[0].replace("_", "-") for word in shared}:
            remedy = f"use {instead}" if instead else "leave it out"
            raise UserError(f"{flag(name)} is set by the comparison itself; {remedy}")
    if command.workers < 1:
        raise UserError(f"--workers {command.workers} is below 1")
    given = tuple(_listed("methods", command.methods, _method)) if command.methods is not None else None
    backbones, suite = _backbones(command, shared), None
    seeds = tuple(_listed("seeds", command.seeds, lambda word: read_number(word, int)))
    grid = tuple(sorted(_listed("lr_grid", command.lr_grid, _rate))) if command.lr_grid is not None else None
    source = command.recipe or value_of(shared, "data") or ""
    folder = Path(command.out) if command.out else Path("runs") / f"compare-{source_name(source)}"
    from snella.config.suites import is_suite, read_suite

    if command.recipe and is_suite(command.recipe):
        suite = read_suite(command.recipe, value_of(shared, "data"))
        rest = divided(shared, ["data"])[1]
        if suite.needs_folder:
            names = ", ".join(task.name for task in suite.tasks[:3])
            raise UserError(f"suite {suite.name} needs --data, the folder that holds {names} ...")
        if other := [*rest, *(["--backbones", command.backbones] if command.backbones else [])]:
            suite = replace(suite, notes=(*suite.notes, f"not the suite's settings alone: {' '.join(other)}"))
        tasks = tuple(PlannedTask(t.name, settings(rest, t.config), folder / t.name) for t in suite.tasks)
    else:
        recipe = ["--recipe", command.recipe] if command.recipe else []
        tasks = (PlannedTask("", settings([*recipe, *shared], None), folder),)
    methods = given or _usual_methods(tasks)
    plan = Plan(tasks, methods, grid, seeds, folder, suite, backbones, command.combine)
    for config in plan.possible():
        validate(config)
        if config.data.folds is not None and config.data.fold is None:
            raise UserError("--folds makes a run into several; leave it out, or name one of them by --fold")
        if config.data.batch_size == "auto":
            raise UserError("--batch-size auto would give each method another one; give the same number to all")
        if plan.backbones and config.model.checkpoint is not None:
            raise UserError("--checkpoint holds the weights of one backbone; leave it or --backbones out")
    return plan


def _backbones(command: Compare, shared: Sequence[str]) -> tuple[str, ...]:
    """Return the backbones that are named, each with a folder of its own; none where each task has its own."""
    if command.backbones is None:
        return ()
    if value_of(shared, "backbone") is not None:
        raise UserError("--backbone and --backbones both say what is tuned; name it among --backbones")
    found = _listed("backbones", command.backbones, str)
    folders: dict[str, str] = {}
    for backbone in found:
        folder = backbone_folder(backbone).casefold()
        if not folder or folder in METHODS:
            raise UserError(f"--backbones: {backbone} cannot be the name of a folder; give it another one")
        if folder in folders:
            raise UserError(f"--backbones: {folders[folder]} and {backbone} would share a folder, {folder}; rename one")
        folders[folder] = backbone
    return tuple(found)


def _usual_methods(tasks: Sequence[PlannedTask]) -> tuple[str, ...]:
    """Return what is compared unless methods are named: no method that a task cannot train by."""
    configs = [task.config for task in tasks]
    left_out = {"linear"} if any(config.task == "generate" for config in configs) else set()  # it has no head
    packed = any(config.generate.half_weights or config.model.base_precision != "fp32" for config in configs)
    left_out |= {"full"} if packed else set()
    return tuple(method for method in ("snella", "lora", "linear", "full") if method not in left_out)


def _listed(name: str, text: str, read: Callable[[str], T]) -> list[T]:
    """Return the values between commas, each once."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise UserError(f"{flag(name)} is empty; give values with commas between them")
    found = []
    for word in words:
        try:
            found.append(read(word))
        except UserError:
            raise
        except ValueError:
            raise UserError(f"{flag(name)}: {word} is not a number; give numbers with commas between them") from None
    if len(set(found)) < len(found):
        raise UserError(f"{flag(name)} {text} names a value twice")
    return found


def _method(word: str) -> str:
    if word not in METHODS:
        raise choice_error("methods", word, tuple(METHODS))
    return word


def _rate(word: str) -> float:
    rate = read_number(word, float)
    if not 0 < rate < math.inf:
        raise UserError(f"--lr-grid: {word} is not above 0")
    return float(f"{rate:g}")  # as the folder's name has it
