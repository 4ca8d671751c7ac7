"""The command line: flags to a typed config, one function per command, errors in a line or two.

What loads torch is imported inside the command that needs it, so that help and wrong flags are instant.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from tyro.conf import OmitArgPrefixes, Positional, arg

from snella.cli.compare_flags import make_plan
from snella.cli.exit import Stopped, again, exit_code, explain, terminable
from snella.cli.flags import check_flags, divided, parse, value_of
from snella.config.recipe import read_recipe
from snella.config.schema import Task, TrainConfig, flag, nearest, run_folder
from snella.config.suites import is_suite_task, read_suite_task
from snella.config.validation import validate
from snella.errors import UserError
from snella.version import __version__

HELP = f"""\
snella {__version__}: fine-tune pre-trained vision backbones by a sparse update that fits its budget.

  snella train --data FOLDER      fine-tune; --recipe NAME_OR_FILE gives defaults (snella train --recipe demo)
  snella compare --data FOLDER    run methods side by side: rates chosen on val, seeds, a table, a chart
  snella evaluate RUN             test a run: metrics, per-class table, figures
  snella predict RUN [IMAGE...]   predict images, or the images of a folder
  snella merge RUN --out FOLDER   write a checkpoint that loads without snella, and ONNX with --onnx
  snella data PATH                show what is found in a data set

snella COMMAND --help lists a command's flags with their defaults. --debug, with any command, shows tracebacks.
"""

C = TypeVar("C")


@dataclass(frozen=True)
class Train:
    """Fine-tune a pre-trained backbone on images; the results go to a run folder."""

    recipe: str | None = None
    """Defaults for the flags below, which override it.
    The name of a recipe (demo), a suite's task (vtab1k/cifar; --data is then the benchmark's folder), or the path of a
    YAML file, such as a run's config.yaml."""
    config: OmitArgPrefixes[TrainConfig] = field(default_factory=TrainConfig)
    """What a recipe may set, and where the results go."""


@dataclass(frozen=True)
class Compare:
    """Tune by several methods on the same data: the learning rate of each is chosen on val, then come more seeds.

    Flags of snella train may follow, for all runs alike: --data, --epochs, --backbone ... but not what is set for each
    run: --method, --lr, --seed, --test, --resume, --overwrite, --estimate."""

    recipe: str | None = None
    """Defaults of the runs, as for snella train, or a suite of tasks, all of which are run."""
    methods: str | None = None
    """Methods of snella train, with commas between them. With lora, the others' differences to it are shown.
    None: snella,lora,linear,full, but for what cannot train (linear to generate, full with --half-weights)."""
    seeds: str = "0,1,2"
    """Seeds of the runs; the first one chooses the learning rate."""
    lr_grid: str | None = None
    """Learning rates to choose from. None: three of 1e-5,3e-5,1e-4 ... 1e-1 around the method's usual one (or the
    recipe's, for its method), further ones for as long as the best is at an end, and at last half rungs (5e-4 ...) on
    both sides of the best; none below --min-lr."""
    workers: int = 1
    """Runs at once, each with its share of the cores (for processes that decode images, see train, use a recipe)."""
    out: str | None = None
    """Folder of the runs (METHOD/lr-RATE/seed-SEED) and the results; None: runs/compare-RECIPE, or -DATA.
    Finished runs in it are not run again."""


@dataclass(frozen=True)
class Evaluate:
    """Test a run: metrics, a table per class, figures; all of it in RUN/evaluation as well."""

    run: Annotated[Positional[str], arg(metavar="RUN")] = ""
    """Run folder that snella train wrote."""
    data: str | None = None
    """Other images to test on, in any layout that train takes; their test split, or val, or all if they are not split.
    None: the data of the run."""
    split: Literal["train", "val", "test"] = "test"
    """Which split of the run's data."""
    features: str | None = None
    """Compare images that the run makes with the split's, in the features of this model: KID and similarity, and FID
    where there are as many images on both sides as features.
    A backbone's name (vit_small_focus; vit_base_patch32_clip_224.openai for CLIP-I), or inception (torch-fidelity)."""
    samples: int = 64
    """How many images it makes for that."""
    batch_size: int = 64
    """Images per forward pass."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:N or mps."""


@dataclass(frozen=True)
class Predict:
    """Predict images, as a table, JSON or CSV on standard output; what is a picture (a mask) goes to a folder.
    A run that generates makes images instead."""

    run: Annotated[Positional[str], arg(metavar="RUN")] = ""
    """Run folder that snella train wrote."""
    images: Annotated[Positional[tuple[str, ...]], arg(metavar="IMAGE...")] = ()
    """Image files, or folders of them (searched in depth). None: three test images of the run's own data."""
    json: bool = False
    """Print JSON, with all that was found: probabilities, or areas, of all classes."""
    csv: bool = False
    """Print CSV, a line for each image."""
    out: str | None = None
    """Write to this file instead of standard output (JSON or CSV by its ending, unless a format is given)."""
    pictures: str | None = None
    """Folder for pictures (masks, overlays, generated images); a new one. None: RUN/predictions."""
    prompt: str | None = None
    """What to generate: a text, or a class's name. None: what the run's sample grids show."""
    n: int = 4
    """How many images to generate for it."""
    seed: int = 0
    """Seed of the first generated image; those of the others follow."""
    steps: int | None = None
    """Denoising steps of a generated image. None: as the run's samples."""
    guidance: float | None = None
    """Guidance scale of generated images. None: as the run's samples."""
    batch_size: int = 64
    """Images per forward pass."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:N or mps."""


@dataclass(frozen=True)
class Merge:
    """Merge a run's update into its backbone: a checkpoint that loads without snella and is as fast as the original."""

    run: Annotated[Positional[str], arg(metavar="RUN")] = ""
    """Run folder that snella train wrote."""
    out: str = ""
    """Folder for the checkpoint. Needed; has no default."""
    onnx: str | None = None
    """Also write an ONNX model to this file and check it (needs onnx, onnxruntime, onnxscript, torch 2.8)."""


@dataclass(frozen=True)
class Data:
    """Show what is found in a data set: images per class and split, sizes, unreadable files, licence."""

    data: Annotated[Positional[str], arg(metavar="PATH")] = ""
    """A folder, a manifest or a name, as snella train --data takes it."""
    task: Task | None = None
    """What the data is for. None: what its layout looks like."""
    seed: int = 0
    """Seed of the splits, where the data has none of its own."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (without the program's name) and return its exit code, one of `snella.cli.exit`."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [a for a in args if a != "--debug"]
    with terminable():
        try:
            return _dispatch(args)
        except BaseException as error:
            if debug:
                traceback.print_exc()
            return explain(error, args, debug=debug)


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0 if args else 2
    if args[0] == "--version":
        print(f"snella {__version__}")
        return 0
    if args[0] not in COMMANDS:
        near = nearest(args[0], COMMANDS)
        raise UserError(f"unknown command {args[0]}{near} (commands: {', '.join(COMMANDS)}; see snella --help)")
    return COMMANDS[args[0]](args[1:])


def _train(args: list[str]) -> int:
    command = _parse(Train, args, default=_defaults(args))
    command = dataclasses.replace(command, config=_in_benchmark(command, args))
    validate(command.config)
    from snella.runs.train import train
    from snella.training.interrupt import Interrupted

    folder = run_folder(command.config)
    before = _written(folder / "config.yaml")
    try:
        train(command.config)
    except Interrupted as stop:
        raise Stopped(128 + stop.signal_number, resume_command(folder)) from None
    except KeyboardInterrupt as stop:
        started = _written(folder / "config.yaml") != before  # it is written when the folder is claimed
        raise Stopped(exit_code(stop), resume_command(folder) if started else again(["train", *args])) from None
    return 0


def _written(path: Path) -> int | None:
    """When a file was written, in ns; None where there is none."""
    return path.stat().st_mtime_ns if path.exists() else None


def _compare(args: list[str]) -> int:
    own, shared = divided(args, [f.name for f in dataclasses.fields(Compare)])
    hints = get_type_hints(TrainConfig) | get_type_hints(Compare)
    check_flags(args, hints, "compare", negatable=True)
    command = _parse(Compare, ["--help"] if {"-h", "--help"} & set(args) else own)

    def settings(flags: Sequence[str], defaults: TrainConfig | None) -> TrainConfig:
        default = _defaults(flags) if defaults is None else Train(config=defaults)
        return _in_benchmark(parse(Train, flags, "compare", negatable=True, default=default), flags)

    plan = make_plan(command, shared, settings)
    from snella.compare.search import compare

    try:
        return 1 if compare(plan, workers=command.workers) else 0
    except KeyboardInterrupt as stop:
        raise Stopped(exit_code(stop), again(["compare", *args])) from None


def _defaults(args: Sequence[str]) -> Train:
    """The recipe's values and its name; `--resume --out RUN` alone takes RUN/config.yaml for the recipe."""
    recipe, out = value_of(args, "recipe"), value_of(args, "out")
    if recipe is None and out and "--resume" in args and (Path(out) / "config.yaml").is_file():
        recipe = str(Path(out) / "config.yaml")
    if not recipe:
        return Train()
    return Train(recipe, read_suite_task(recipe) if is_suite_task(recipe) else read_recipe(recipe))


def _in_benchmark(command: Train, args: Sequence[str]) -> TrainConfig:
    """The config; with a suite's task, --data names the folder of the whole benchmark, or the task's own."""
    config = command.config
    if command.recipe and is_suite_task(command.recipe) and value_of(args, "data"):
        return dataclasses.replace(config, data=read_suite_task(command.recipe, config.data).data)
    return config


def _evaluate(args: list[str]) -> int:
    command = _parse(Evaluate, args)
    folder = _run(command.run, "evaluate")
    from snella.runs.evaluate import evaluate

    evaluate(folder, **_options(command))
    return 0


def _predict(args: list[str]) -> int:
    command = _parse(Predict, args)
    folder = _run(command.run, "predict")
    if command.json and command.csv:
        raise UserError("--json and --csv contradict each other: pass one of them")
    from snella.runs.folder import read_about

    options = _options(command)
    if read_about(folder)["task"] == "generate":
        from snella.runs.generate import generate

        _refuse(command, _IMAGE_FLAGS, "makes images and takes none")
        generate(folder, **{name: value for name, value in options.items() if name not in _IMAGE_FLAGS})
        return 0
    from snella.runs.predict import predict

    _refuse(command, _GENERATION_FLAGS, "generates no images")
    images = predict(folder, **{name: value for name, value in options.items() if name not in _GENERATION_FLAGS})
    return 1 if images else 0


_IMAGE_FLAGS = ("images", "csv", "out", "batch_size")  # of predict, for runs that look at images
_GENERATION_FLAGS = ("prompt", "n", "seed", "steps", "guidance")  # for those that make some


def _refuse(command: Predict, names: tuple[str, ...], why: str) -> None:
    """Refuse flags that this run does not read."""
    for name in names:
        if getattr(command, name) != getattr(Predict, name):
            what = "IMAGE..." if name == "images" else flag(name)
            raise UserError(f"{what}: {command.run} {why}; leave it out")


def _merge(args: list[str]) -> int:
    command = _parse(Merge, args)
    folder = _run(command.run, "merge")
    if not command.out:
        raise UserError("no folder for the checkpoint: snella merge RUN --out FOLDER")
    from snella.runs.merge import merge

    merge(folder, **_options(command))
    return 0


def _data(args: list[str]) -> int:
    command = _parse(Data, args)
    if not command.data:
        raise UserError("no data: snella data PATH names a folder, a manifest or a known data set")
    from rich.console import Console

    from snella.console import checking_images
    from snella.tasks.registry import TASKS

    task = command.task or next(name for name, module in TASKS.items() if module.recognised(command.data))
    with checking_images(Console(stderr=True)) as progress:
        report = TASKS[task].describe(command.data, seed=command.seed, progress=progress)
    Console().print(report, soft_wrap=True)  # a path that is broken over lines cannot be copied
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "compare": _compare,
    "evaluate": _evaluate,
    "predict": _predict,
    "merge": _merge,
    "data": _data,
}


def _options(command: Any) -> dict[str, Any]:
    return {f.name: getattr(command, f.name) for f in dataclasses.fields(command) if f.name != "run"}


def _run(run: str, command: str) -> Path:
    if not run:
        raise UserError(f"no run folder: snella {command} RUN, with the folder that snella train wrote")
    return Path(run)


def _parse(command: type[C], args: Sequence[str], **default: C) -> C:
    """The command that the flags describe, with its name and fields in the messages."""
    name, trains = command.__name__.lower(), command is Train
    hints = get_type_hints(command) | (get_type_hints(TrainConfig) if trains else {})
    hints.pop("config", None)
    check_flags(args, hints, name, negatable=trains)
    return parse(command, args, name, negatable=trains, **default)


def resume_command(folder: Path) -> str:
    """The command that goes on with a run."""
    return shlex.join(["snella", "train", "--recipe", str(folder / "config.yaml"), "--out", str(folder), "--resume"])
