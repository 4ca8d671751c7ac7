"""The command: tables, the result's file, the chart, and errors in a line."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import chart
from benchmarks.chart import draw_chart, points
from benchmarks.run import main
from snella.errors import UserError

SMALL = ["--model", "test_vit", "--r", "4", "--rounds", "2", "--classes", "5"]


def result_of(times: dict[str, float], memory: dict[str, int]) -> dict[str, Any]:
    """Return a result as the command writes it, at one batch size."""
    return {
        "settings": {"model": "vit", "r": 8, "precision": "fp32", "methods": list(times)},
        "machine": {"cpu": "a CPU", "threads": 2, "gpu": None, "torch": torch.__version__},
        "results": [
            {
                "batch": 8,
                "methods": {
                    name: {
                        "step": {"median": time, "samples": [time]},
                        "total_bytes": memory[name],
                        "peak_bytes": None,
                    }
                    for name, time in times.items()
                },
            }
        ],
    }


def test_measures_writes_and_shows_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--methods", "full,lora,snella", "--batches", "1,2", "--out", str(tmp_path)]
    assert main([*SMALL, *out]) == 0
    first = capsys.readouterr().out
    file = tmp_path / "test_vit-b1-2-cpu-fp32.json"
    assert str(file) in first
    assert [path.name for path in tmp_path.iterdir()] == [file.name]

    result = json.loads(file.read_text())
    assert [entry["batch"] for entry in result["results"]] == [1, 2]
    for entry in result["results"]:
        assert list(entry["methods"]) == ["full", "lora", "snella"]
        for row in entry["methods"].values():
            for key in ("step", "forward_backward", "evaluation"):
                assert len(row[key]["samples"]) == 2
                low, high = sorted(row[key]["samples"])
                assert row[key]["median"] == pytest.approx((low + high) / 2)
    one, two = (entry["methods"]["full"] for entry in result["results"])
    assert two["saved_bytes"] == pytest.approx(2 * one["saved_bytes"], rel=0.01)
    assert one["total_bytes"] - one["saved_bytes"] == 16 * one["parameters"] == 16 * one["trainable"]

    assert main(["--result", str(file), "--chart", str(tmp_path / "chart.png")]) == 0
    shown = capsys.readouterr().out
    assert first.splitlines()[:-1] == shown.splitlines()[:-1]  # the tables; the last line is where the file is
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--methods", "full,lara"], "'lara' is unknown; choose from full, lora"),
        (["--batches", "1,0"], "'0' is not a whole number"),
        (["--model", "no_such_model"], "no_such_model"),
        (["--model", "test_byobnet", "--methods", "lora"], "no default targets for ByobNet"),
        (["--device", "abacus"], "device 'abacus' cannot be used here"),
        (["--methods", "full", "--chart", "chart.png"], "add lora to --methods"),
        (["--result", "no/such/file.json"], "no/such/file.json"),
        (["--result", __file__], "is not a result of a comparison"),
    ],
)
def test_errors_are_one_line(flags: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(flags)
    except SystemExit as stop:
        code = stop.code
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("batch 8: ")]
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert says in lines[0]


def test_points_are_multiples_of_lora() -> None:
    result = result_of({"lora": 2.0, "snella": 3.0, "full": 1.0}, {"lora": 100, "snella": 50, "full": 300})
    assert points(result) == {"lora": (1, 1), "snella": (1.5, 0.5), "full": (0.5, 3)}

    del result["results"][0]["methods"]["lora"]
    with pytest.raises(UserError, match=r"add lora"):
        points(result)


def test_of_several_results_the_first_that_has_a_method_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(chart, "save_figure", lambda figure, path: drawn.append(figure) or path)
    first = result_of({"lora": 2.0, "snella": 3.0}, {"lora": 100, "snella": 50})
    second = result_of({"lora": 1.0, "snella": 9.0, "full": 4.0}, {"lora": 10, "snella": 5, "full": 30})
    draw_chart([first, second], tmp_path / "chart.png")
    spots = {tuple(line.get_xydata()[0]) for line in drawn[0].axes[0].lines if len(line.get_xdata()) == 1}
    assert spots == {(1, 1), (1.5, 0.5), (4, 3)}

    second["settings"]["r"] = 16
    with pytest.raises(UserError, match="differ in r"):
        draw_chart([first, second], tmp_path / "chart.png")


def test_labels_cover_no_point_and_no_other_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(chart, "save_figure", lambda figure, path: drawn.append(figure) or path)
    names = ["lora", "dora", "snella-off", "snella", "snella-mlp", "adalora", "published"]
    near = {name: 1 + 0.02 * i for i, name in enumerate(names)}  # a crowd, and one far away
    times = near | {"full": 2.0}
    draw_chart([result_of(times, {name: 1000 - i for i, name in enumerate(times)})], tmp_path / "chart.png")

    axes = drawn[0].axes[0]
    assert {text.get_text() for text in axes.texts} == set(times)
    boxes = [text.get_window_extent() for text in axes.texts]
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    spots = axes.transData.transform([line.get_xydata()[0] for line in axes.lines if len(line.get_xdata()) == 1])
    assert len(spots) == len(times)
    assert not any(box.contains(*spot) for box in boxes for spot in spots)
