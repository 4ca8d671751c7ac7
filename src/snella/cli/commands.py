"""The flags of each command, with their help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from tyro.conf import OmitArgPrefixes, Positional, arg

from snella.cli.flags import check_flags, parse
from snella.config.data import Suspected
from snella.config.fields import descriptions
from snella.config.schema import DEFAULTS, TrainConfig, settings
from snella.config.tasks import TASKS, Separator

if TYPE_CHECKING:
    TaskName = str
else:
    TaskName = Literal[tuple(TASKS)]


@dataclass(frozen=True)
class Train:
    """Fine-tune a pre-trained backbone on images; the results go to a run folder."""

    recipe: str | None = None
    """Defaults for the flags below, which override it.
    The name of a recipe (demo), a suite's task (vtab1k/cifar; --data is then the benchmark's folder), or the path of a
    YAML file, such as a run's config.yaml."""
    config: TrainConfig = DEFAULTS
    """What a recipe may set, and where the results go."""


@dataclass(frozen=True)
class Compare:
    """Tune by several methods on the same data: the learning rate of each is chosen on val, then come more seeds.
    With --backbones, by each method on each of them.

    Flags of snella train may follow, for all runs alike: --data, --epochs, --backbone ... but not what is set for each
    run: --method, --lr, --seed, --test, --resume, --overwrite, --accept-data, --estimate, --devices."""

    recipe: str | None = None
    """Defaults of the runs, as for snella train, or a suite of tasks, all of which are run."""
    methods: str | None = None
    """Methods of snella train, with commas between them. With lora, the others' differences to it are shown.
    None: snella,lora,linear,full, but for what cannot train (linear to generate, full with --half-weights)."""
    backbones: str | None = None
    """Backbones, as --backbone takes them, with commas between them: each method tunes each, at its own image size
    unless --image-size says one for all, and LoRA on the same backbone is what it is compared with. The runs are then
    in BACKBONE/METHOD/lr-RATE/seed-SEED."""
    seeds: str = "0,1,2"
    """Seeds of the runs; the first one chooses the learning rate."""
    lr_grid: str | None = None
    """Learning rates to choose from. None: three of 1e-5,3e-5,1e-4 ... 1e-1 around the method's usual one (or the
    recipe's, for its method), further ones for as long as the best is at an end, and at last half rungs (5e-4 ...) on
    both sides of the best; none below --min-lr."""
    combine: bool = True
    """Also score the soup and the ensemble (see snella soup, snella predict) of the rates that were tried with the
    first seed, chosen on val and tested once; it takes some evaluations."""
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
    """Image files, or folders of them (searched in depth). None: three test images of the run's own data.
    A run folder is a further run: probabilities are the mean of all runs', which may have other backbones."""
    json: bool = False
    """Print JSON, with all that was found: probabilities, or areas, of all classes."""
    csv: bool = False
    """Print CSV, a line for each image."""
    out: str | None = None
    """Write to this new file instead of standard output (JSON or CSV by its ending, unless a format is given)."""
    pictures: str | None = None
    """Folder for pictures (masks, overlays, heat maps, generated images); a new one. None: RUN/predictions."""
    explain: bool = False
    """Also write each image with a heat map of what its likeliest class rests on, in one folder: explanations/ beside
    --out, or in RUN. To classify and label, by one run (needs the extra explain: captum)."""
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
    lora: str | None = None
    """Write a LoRA close to the update instead, which PEFT, diffusers and ComfyUI load: a whole number is its rank
    (64); a number with a point (0.99) is the share of each layer's update, in squares, that its rank has to hold.
    What each layer keeps is shown, and the metrics on val of both."""


@dataclass(frozen=True)
class Soup:
    """Average the weights of runs of one backbone, trained on the same images, into one model: a run folder again.

    The best on val comes first; each further run, the better first, is taken where val does not fall by it."""

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN")] = ()
    """Run folders that snella train wrote, or snella compare (METHOD/lr-RATE/seed-SEED); of any methods and rates."""
    out: str = ""
    """Folder of the soup. Needed; has no default."""
    take_all: bool = False
    """Average all runs, whatever val says."""
    batch_size: int = 64
    """Images per forward pass."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:N or mps."""


@dataclass(frozen=True)
class Check:
    """Verify a run folder: that its files are whole and finite, and its backbone and data those of the training.
    Exits with 0 where all is well, and with 1 where something is wrong; says what to do about it."""

    run: Annotated[Positional[str], arg(metavar="RUN")] = ""
    """Run folder that snella train wrote."""


@dataclass(frozen=True)
class Report:
    """Write the page of a run, or of a comparison: one HTML file that needs nothing else, to look at or to send.
    Every training and every comparison writes it too."""

    run: Annotated[Positional[str], arg(metavar="RUN|COMPARISON")] = ""
    """Folder that snella train or snella compare wrote."""
    out: str | None = None
    """A new file, FILE.html. None: report.html in the folder, which is replaced."""
    explain: bool = False
    """Show heat maps of what the most confident errors rest on; it loads the model. To classify (needs the extra
    explain: captum)."""


@dataclass(frozen=True)
class App:
    """Serve a page, on this machine, to try runs on: drop images and see classes, masks or values, or make images.
    Several runs answer side by side. Ctrl-C ends it. Needs the extra app: pip install "snella[app]"."""

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN")] = ()
    """Run folders that snella train wrote."""
    host: str = "127.0.0.1"
    """Address to listen at. Another than this one lets other machines in, who need no password."""
    port: int | None = None
    """Port to listen at. None: the first free one from 7860 on."""
    max_upload: int = 20
    """Largest file that is taken, MB."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:N or mps."""


@dataclass(frozen=True)
class Push:
    """Upload a finished run to the Hugging Face hub: adapter, settings, metrics and a model card, never the data.

    What is pushed names no file of this machine and no image. Needs a token that may write: hf auth login, or HF_TOKEN.
    """

    run: Annotated[Positional[str], arg(metavar="RUN")] = ""
    """Run folder that snella train wrote."""
    name: Annotated[Positional[str], arg(metavar="OWNER/NAME")] = ""
    """Its repository, which is made if there is none."""
    private: bool = False
    """Make it private where it is made now; else it is what the owner's new ones are, which is usually public."""
    license: str | None = None
    """Licence of the adapter, for the card, as the hub writes it (apache-2.0, cc-by-nc-sa-4.0)."""
    data_license: str | None = None
    """What the card says of the data's licence. None: what the data says of itself."""


@dataclass(frozen=True)
class Data:
    """Show what is found in a data set: images per class and split, sizes, unreadable files, licence."""

    data: Annotated[Positional[str], arg(metavar="PATH")] = ""
    """A folder, a manifest or a name, as snella train --data takes it."""
    task: TaskName | None = None
    """What the data is for. None: what its layout looks like."""
    seed: int = 0
    """Seed of the splits, where the data has none of its own."""
    trust: tuple[Suspected, ...] | None = None
    """Suspicions that are not said, as snella train --trust takes them."""
    strict: bool = False
    """Exit with code 1 where there is a suspicion."""
    sheet: str | None = None
    """Also draw a contact sheet, a row of images for each class, to this new file (FILE.png)."""
    group_column: str | None = None
    """Column that says what images belong together, as snella train --group-column takes it."""
    group_pattern: str | None = None
    """The same by a regular expression, as snella train --group-pattern takes it."""
    splits: str | None = None
    """Table that divides the images, as snella train --splits takes it."""
    classes: Literal["leaf", "top", "path", "names"] | None = None
    """What the class of an image is, as snella train --classes takes it."""
    label_column: str | None = None
    """Column of the labels, as snella train --label-column takes it."""
    label_pattern: str | None = None
    """What the label is in an image's path, as snella train --label-pattern takes it."""
    label_separator: Separator | None = None
    """What divides the labels in a cell, as snella train --label-separator takes it."""
    target_column: str | None = None
    """Columns of the numbers, as snella train --target-column takes it."""
    crops: bool = False
    """Cut the boxes of a detection data set out, as snella train --crops does."""
    ignore_index: int | None = None
    """Value in the masks that stands for no class, as snella train --ignore-index takes it."""


def parse_train(args: Sequence[str], command: str, defaults: Train) -> Train:
    """Return the training that flags describe.

    Args:
        args: the flags.
        command: the command's name, as it is typed; others than train check unknown flags by themselves.
        defaults: a recipe's name and its values.

    Raises:
        UserError: an unknown flag or a wrong value.
    """
    if command == "train":
        check_flags(args, train_hints(), command, negatable=True)
    texts = descriptions(Train)
    flat = _flat_settings()
    nested = Annotated[OmitArgPrefixes[flat], arg(help=texts["config"])]
    recipe = Annotated[str | None, arg(help=texts["recipe"])]
    typed = make_dataclass("Train", [("recipe", recipe), ("config", nested)], frozen=True)
    typed.__doc__ = Train.__doc__
    default = typed(defaults.recipe, flat(**defaults.config.flat()))
    found: Any = parse(typed, args, command, negatable=True, default=default)
    return Train(found.recipe, TrainConfig.of(**vars(found.config)))


def train_hints() -> dict[str, Any]:
    """Return the types of all flags of `snella train`, by flat name."""
    return {"recipe": str | None, **{name: known.hint for name, known in settings().items()}}


def _flat_settings() -> Any:
    """Return the settings as one flat dataclass, with their texts as help."""
    sections = get_type_hints(TrainConfig)
    texts = {None: descriptions(TrainConfig)}
    texts |= {name: descriptions(sections[name]) for name in {s.section for s in settings().values()} if name}
    return make_dataclass(
        "Settings",
        [
            (name, Annotated[known.hint, arg(help=texts[known.section][known.attribute])], known.default)
            for name, known in settings().items()
        ],
        frozen=True,
    )
