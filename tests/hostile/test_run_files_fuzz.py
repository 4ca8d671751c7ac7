"""Whatever stands in a file of a run, its readers give a result or a UserError of one line, and nothing else."""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snella.config.method import MethodConfig
from snella.config.recipe import read_recipe, to_yaml
from snella.config.schema import TrainConfig
from snella.errors import UserError
from snella.methods.adapters import load_adapter, save_adapter, wrap
from snella.report.allocation import allocation_figure
from snella.report.figures import training_curves_figure
from snella.report.rows import read_allocations, read_metrics
from snella.runs.check import read_start
from snella.runs.folder import read_about, read_summary
from snella.tasks.registry import task_named
from snella.training.checkpoint import newest_checkpoint, read_divergences
from support.toy import SETTINGS, interrupt_at, train
from support.vits import tiny_vit

ODD = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    3.5,
    -0.0,
    10**30,
    1e308,
    "",
    "x",
    "1",
    [],
    [[]],
    [None],
    {},
    {"a": {}},
    "\ud800",
)
CLASSIFIER: dict[str, Any] = {
    "task": "classify",
    "method": "lora",
    "backbone": {
        **dict(name="test_vit", pretrained=False, checkpoint=None, image_size=32, num_classes=2, drop_path=0.0, seed=0)
    },
    "classes": ["a", "b"],
    "preprocessing": {
        **dict(image_size=32, mean=[0.5] * 3, std=[0.5] * 3, interpolation="bicubic", resize="squash"),
    },
    "fingerprint": "0",
    "versions": {"torch": "2"},
}
ABOUTS = {
    "classify": CLASSIFIER,
    "segment": {
        **CLASSIFIER,
        "task": "segment",
        "decoder": None,
        "adapt_decoder": False,
        "masks": {"values": [0, 1], "colors": None, "ignore": [], "binary": False},
        "palette": [[0, 0, 0], [1, 2, 3]],
    },
}
SUMMARY = {
    "val": {"top1": 1.0},
    "test": {"top1": None},
    "selection": {"metric": "top1", "higher_is_better": True},
    **dict(trainable_parameters=1, adapter_bytes=2, peak_memory_bytes=3, seed=0, seconds=1.5),
    "images": {"train": 3},
    "device": "cpu",
    "versions": {"torch": "2"},
}
START = {"data": "0", "images": {"train": 1}, "backbone": "0", "arithmetic": "x", "entries": {"train": {"a": "b"}}}
METRICS = [
    {"kind": "train", "step": 1, "epoch": 1, "loss": 0.9, "lr": 1e-3, "images_per_second": 8.9},
    {"kind": "val", "step": 1, "epoch": 1, "top1": 0.5, "loss": None},
    {"kind": "val", "step": 2, "epoch": 2, "top1": 0.7, "loss": 0.3},
]
ALLOCATION = [
    {"step": 3, "budget": 9, "kept": {"blocks.0.attn.proj": 4}, "size": {"blocks.0.attn.proj": 5}, "skipped": 0}
]


@st.composite
def spoilt(draw: st.DrawFn, value: Any) -> bytes:
    """A JSON text in which a value is another one, gone or new, or in which bytes are."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    for _ in range(draw(st.integers(0, 2))):
        holder, key = draw(st.sampled_from(places))
        change = draw(st.sampled_from(["other", "gone", "new"]))
        if change == "other" or isinstance(holder, list):
            holder[key] = draw(st.sampled_from(ODD))
        elif change == "gone":
            holder.pop(key, None)
        else:
            holder[draw(st.sampled_from(["x", "step", "\n"]))] = draw(st.sampled_from(ODD))
    content = json.dumps(value).encode()
    if draw(st.booleans()):
        return content
    start, length = draw(st.integers(0, len(content))), draw(st.integers(0, 8))
    return content[:start] + draw(st.binary(max_size=4)) + content[start + length :]


def _places(value: Any) -> Any:
    """Yield each list or table with each of its keys, of what is inside as well."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def result_or_line(read: Callable[[], object]) -> None:
    """Call a reader; what it refuses is one line."""
    try:
        read()
    except UserError as error:
        line = str(error)
    else:
        return
    assert len(line.splitlines()) == 1
    assert len(line) < 1000


# one folder serves all examples: each writes its file anew
fuzz = settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("task", ABOUTS)
def test_snella_json(task: str, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "config.yaml").write_text(to_yaml(TrainConfig.of(data="x")))

    def use() -> None:
        about = read_about(tmp_path)
        found = task_named(about["task"])
        found.spec_from(about)
        found.learner_from(about)

    @fuzz
    @given(spoilt(ABOUTS[task]))
    def trial(content: bytes) -> None:
        (tmp_path / "adapter" / "snella.json").write_bytes(content)
        result_or_line(use)

    trial()


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("summary.json", SUMMARY, read_summary),
        ("start.json", START, read_start),
        ("diverged.json", [{"step": 1, "learning_rate": 0.1, "lr": 1.0}], read_divergences),
    ],
)
def test_json_files(name: str, value: Any, read: Callable[[Path], object], tmp_path: Path) -> None:
    @fuzz
    @given(spoilt(value))
    def trial(content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        result_or_line(lambda: read(tmp_path))

    trial()


def _lines(rows: list[dict[str, Any]]) -> st.SearchStrategy[bytes]:
    return st.tuples(*(spoilt(row) for row in rows)).map(lambda lines: b"\n".join(lines) + b"\n")


def test_rows_and_their_figures(tmp_path: Path) -> None:
    def draw() -> None:
        if rows := [row for row in read_metrics(tmp_path, "top1") if row["kind"] == "val"]:
            training_curves_figure(read_metrics(tmp_path, "top1"), tmp_path / "a.svg", best_epoch=rows[0]["epoch"])
        if allocations := read_allocations(tmp_path):
            allocation_figure(allocations, tmp_path / "b.svg")

    @settings(fuzz, max_examples=25)
    @given(_lines(METRICS), _lines(ALLOCATION))
    def trial(metrics: bytes, allocation: bytes) -> None:
        (tmp_path / "metrics.jsonl").write_bytes(metrics)
        (tmp_path / "allocation.jsonl").write_bytes(allocation)
        result_or_line(draw)

    trial()


def test_state_json(tmp_path: Path) -> None:
    """A state that is not what a training could have written is refused, or goes on to the end and stops there."""
    with pytest.raises(Exception, match="interrupted after step 5"):
        train(tmp_path, at_step=interrupt_at(5))
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    good, sums = ((checkpoint / name).read_bytes() for name in ("state.json", "checksums.json"))
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    rows = {name: (tmp_path / name).read_bytes() for name in ("metrics.jsonl", "allocation.jsonl")}

    @settings(fuzz, max_examples=40)
    @given(spoilt(json.loads(good)))
    def trial(content: bytes) -> None:
        (checkpoint / "state.json").write_bytes(content)
        (checkpoint / "checksums.json").write_text(json.dumps({**json.loads(sums), "state.json": zlib.crc32(content)}))
        steps: list[int] = []
        result_or_line(lambda: train(tmp_path, resume=True, at_step=steps.append, settings=longer))
        assert len(steps) <= 4
        for path in (tmp_path / "checkpoints").iterdir():
            if path.name not in kept:
                for file in path.iterdir():
                    file.unlink()
                path.rmdir()
        for name, text in rows.items():
            (tmp_path / name).write_bytes(text)

    longer = replace(SETTINGS, checkpoint_every=1000)  # only the last one, so that the first ones stay
    trial()


@pytest.mark.parametrize("method", ["snella", "lora"])
def test_adapter_config(method: str, tmp_path: Path) -> None:
    model = wrap(tiny_vit(), MethodConfig(name=method, r=4), total_step=20)
    save_adapter(method, model, tmp_path)
    path = tmp_path / "adapter_config.json"

    @settings(fuzz, max_examples=25)
    @given(spoilt(json.loads(path.read_text())))
    def trial(content: bytes) -> None:
        path.write_bytes(content)
        result_or_line(lambda: load_adapter(method, tiny_vit(), tmp_path))

    trial()


def test_weights(tmp_path: Path) -> None:
    save_adapter("linear", wrap(tiny_vit(), MethodConfig(name="linear"), total_step=20), tmp_path)
    path = tmp_path / "model.safetensors"
    good = path.read_bytes()

    @settings(fuzz, max_examples=60)
    @given(st.integers(0, len(good) - 1), st.integers(0, 7), st.booleans())
    def trial(place: int, bit: int, cut: bool) -> None:
        content = bytearray(good[: place if cut else None])
        if not cut:
            content[place] ^= 1 << bit
        path.write_bytes(content)
        result_or_line(lambda: load_adapter("linear", tiny_vit(), tmp_path))

    trial()


def test_config_yaml(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    good = to_yaml(TrainConfig.of(data="x", target_modules=("qkv",)))

    @fuzz
    @given(st.integers(0, len(good)), st.integers(0, 12), st.text(alphabet="ab:-[]{}&*!<>|'\"\n \t0.\0é", max_size=5))
    def trial(start: int, length: int, new: str) -> None:
        path.write_text(good[:start] + new + good[start + length :])
        result_or_line(lambda: read_recipe(str(path)))

    trial()
