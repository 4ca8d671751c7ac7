"""A comparison from the command line: the protocol, what is run again, failures, Ctrl-C, all tasks, suites."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import shlex
import signal
import threading
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

import snella.compare.search
from snella.cli.main import main
from snella.compare.jobs import Job
from snella.config.recipe import read_recipe
from snella.config.schema import TrainConfig
from snella.config.suites import Published, Suite, SuiteTask
from snella.runs.folder import alone_in
from support import generation_runs, masked_runs, tiny_pipelines
from support.runs import MODEL

STEPS = ["--epochs", "2", "--batch-size", "8"]
TWO = ["--methods", "snella,lora", "--seeds", "0,1", "--lr-grid", "3e-2,1e-3"]


def compare(data: Path, out: Path, *flags: str) -> int:
    return main(["compare", "--data", str(data), "--out", str(out), *MODEL, *STEPS, *flags])


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def rewrite(folder: Path, **values: Any) -> None:
    """Let a finished run have come to something else."""
    (folder / "summary.json").write_text(json.dumps(summary(folder) | values))


def test_the_whole_protocol(images, tmp_path, ran, capsys):
    out = tmp_path / "out"
    assert compare(images, out, *TWO) == 0
    assert ran[:4] == [f"{m}/lr-{lr}/seed-0" for m in ("snella", "lora") for lr in ("0.001", "0.03")]
    report = json.loads((out / "compare.json").read_text())
    rows = {row["method"]: row for row in report["methods"]}
    lines = {line["method"]: line for line in csv.DictReader(open(out / "compare.csv"))}  # noqa: SIM115
    for method, row in rows.items():
        val = {f"{lr:g}": summary(out / method / f"lr-{lr:g}" / "seed-0")["val"]["top1"] for lr in (1e-3, 3e-2)}
        assert row["lr"] == float(max(val, key=lambda lr: val[lr]))
        assert {f"{entry['lr']:g}": entry["val"] for entry in row["grid"]} == val
        folders = [out / method / f"lr-{row['lr']:g}" / f"seed-{seed}" for seed in (0, 1)]
        assert [run["folder"] for run in row["runs"]] == list(map(str, folders))
        for split, column in (("test", "test"), ("test_last", "last_epoch")):
            scores = [summary(folder)[split]["top1"] for folder in folders]
            assert [run[split]["top1"] for run in row["runs"]] == scores
            assert float(lines[method][f"{column}_mean"]) == pytest.approx(fmean(scores))
            assert float(lines[method][f"{column}_std"]) == pytest.approx(stdev(scores))
        assert int(lines[method]["trainable_parameters"]) == summary(folders[0])["trainable_parameters"]
    ours, theirs = ([run["test"]["top1"] for run in rows[m]["runs"]] for m in ("snella", "lora"))
    expected = fmean(a - b for a, b in zip(ours, theirs, strict=True))
    assert float(lines["snella"]["difference_mean"]) == pytest.approx(expected)
    assert lines["lora"]["difference_mean"] == ""
    shown = capsys.readouterr().out
    for words in ("the best epoch on val", "seeds: 0, 1", "18 train, 6 val, 6 test", "mean 0.5", "torch", "end of its"):
        assert words in " ".join(shown.split())
    assert (out / "compare.md").read_text().startswith("| method | lr | test top-1 |")
    assert (out / "compare.png").stat().st_size > 10_000


def test_finished_runs_are_not_run_again(images, tmp_path, ran, capsys):
    flags = ("--methods", "linear", "--seeds", "0", "--lr-grid")
    assert compare(images, tmp_path, *flags, "1e-3") == 0
    before = (tmp_path / "compare.json").read_text()
    assert compare(images, tmp_path, *flags, "1e-3") == 0
    assert (tmp_path / "compare.json").read_text() == before
    assert compare(images, tmp_path, *flags, "1e-3,1e-2") == 0
    assert sum("lr-0.01/" in name and "test" not in name for name in ran) == 1
    assert ran[:2] == ["linear/lr-0.001/seed-0", "linear/lr-0.001/seed-0, test"]
    assert len(set(ran)) == len(ran)
    count = len(ran)
    capsys.readouterr()

    assert compare(images, tmp_path, *flags, "1e-3", "--weight-decay", "0") == 2
    assert f"{tmp_path / 'linear'}/lr-0.001/seed-0 was trained with other settings (--weight-decay was 0.05" in (
        capsys.readouterr().err
    )
    assert len(ran) == count


def test_the_rate_is_chosen_on_val_and_not_on_test(images, tmp_path, ran):
    flags = ("--methods", "linear", "--seeds", "3", "--lr-grid", "1e-3,3e-3,1e-2")
    assert compare(images, tmp_path, *flags) == 0
    for lr, val, test in ((0.001, 0.2, 0.9), (0.003, 0.6, 0.1), (0.01, 0.6, 0.8)):  # of two equals the first
        rewrite(tmp_path / "linear" / f"lr-{lr:g}" / "seed-3", val={"top1": val}, test={"top1": test})
    assert compare(images, tmp_path, *flags) == 0
    report = json.loads((tmp_path / "compare.json").read_text())
    assert report["methods"][0]["lr"] == 0.003
    assert report["methods"][0]["summary"]["test_mean"] == 0.1
    assert report["notes"] == []


def test_of_equal_rates_the_middle_one_is_taken(images, tmp_path, ran):
    flags = ("--methods", "linear", "--seeds", "3", "--lr-grid", "1e-3,3e-3,1e-2")
    assert compare(images, tmp_path, *flags) == 0
    for scores, best in (((0.6, 0.6, 0.6), 0.003), ((0.1, 0.6, 0.5), 0.003), ((0.6, 0.6, 0.1), 0.001)):
        for lr, val in zip((0.001, 0.003, 0.01), scores, strict=True):
            rewrite(tmp_path / "linear" / f"lr-{lr:g}" / "seed-3", val={"top1": val})
        assert compare(images, tmp_path, *flags) == 0
        assert json.loads((tmp_path / "compare.json").read_text())["methods"][0]["lr"] == best, scores


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        pytest.param(1e-3, (3e-4, 5e-4, 1e-3, 2e-3, 3e-3), marks=pytest.mark.slow),
        pytest.param(2e-3, (3e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2), marks=pytest.mark.slow),
        pytest.param(3e-2, (3e-4, 1e-3, 3e-3, 1e-2, 2e-2, 3e-2, 5e-2, 1e-1), marks=pytest.mark.slow),
        (1e-4, (3e-5, 5e-5, 1e-4, 2e-4, 3e-4, 1e-3, 3e-3)),
    ],
)
def test_rates_are_added_around_the_best(best, tried, images, train, tmp_path, monkeypatch):
    """As if the score fell from the best rate to both sides; a run is started once."""
    names = []

    def runs(jobs: list[Job], *, workers: int, console: Any) -> dict[Job, str]:
        for job in jobs:
            names.append(job.name)
            with contextlib.redirect_stdout(io.StringIO()):
                assert train(job.command[3:]) == 0
            folder = Path(job.command[-2])
            score = 1 - abs(math.log(float(folder.parent.name.removeprefix("lr-")) / best)) / 10
            rewrite(folder, val={"top1": score})
        return {}

    monkeypatch.setattr(snella.compare.search, "run_jobs", runs)
    assert compare(images, tmp_path, "--methods", "lora", "--seeds", "0,1", "--epochs", "1") == 0
    chosen = [f"lora/lr-{best:g}/seed-0, test", f"lora/lr-{best:g}/seed-1"]
    assert sorted(names) == sorted([*(f"lora/lr-{lr:g}/seed-0" for lr in tried), *chosen])
    (row,) = json.loads((tmp_path / "compare.json").read_text())["methods"]
    assert [entry["lr"] for entry in row["grid"]] == list(tried)


def test_a_rate_of_the_search_may_fail(images, tmp_path, ran, monkeypatch):
    """By its rate alone; not one that was asked for, and not all of them."""
    run_jobs, lost, reason = snella.compare.search.run_jobs, {"lr-0.003"}, "the loss is nan"

    def runs(jobs: list[Job], *, workers: int, console: Any) -> dict[Job, str]:
        diverged = {job: reason for job in jobs if job.name.split("/")[1] in lost}
        return run_jobs([job for job in jobs if job not in diverged], workers=workers, console=console) | diverged

    monkeypatch.setattr(snella.compare.search, "run_jobs", runs)
    flags = ("--methods", "lora", "--seeds", "0", "--epochs", "1")
    assert compare(images, tmp_path / "some", *flags) == 0
    report = json.loads((tmp_path / "some" / "compare.json").read_text())
    assert "lora/lr-0.003/seed-0 failed: the loss is nan" in report["notes"]
    reason = "ended by SIGKILL"
    assert compare(images, tmp_path / "some", *flags) == 1
    assert compare(images, tmp_path / "given", *flags, "--lr-grid", "1e-3,3e-3") == 1
    lost |= {"lr-0.0003", "lr-0.001"}
    assert compare(images, tmp_path / "all", *flags) == 1


def test_of_the_grid_only_the_chosen_run_is_tested(images, tmp_path, ran):
    assert compare(images, tmp_path, "--methods", "lora", "--seeds", "0", "--lr-grid", "1e-5,1e-2") == 0
    (row,) = json.loads((tmp_path / "compare.json").read_text())["methods"]
    for lr in (1e-5, 1e-2):
        assert ("test" in summary(tmp_path / "lora" / f"lr-{lr:g}" / "seed-0")) == (lr == row["lr"])


def test_a_failed_run_is_reported_and_the_rest_goes_on(images, tmp_path, ran, capsys):
    # nothing is left of a loss at such a rate
    flags = ("--methods", "full,linear", "--seeds", "0", "--lr-grid", "1e-3,1e30")
    assert compare(images, tmp_path, *flags) == 1
    assert len(ran) == 6  # with the tests of the two that are left
    assert "failed: " in capsys.readouterr().out
    report = json.loads((tmp_path / "compare.json").read_text())
    full = report["methods"][0]
    assert full["lr"] == 1e-3
    assert full["grid"][1]["val"] is None
    assert any("full/lr-1e+30/seed-0 failed: the loss is nan" in note for note in report["notes"])


@pytest.mark.usefixtures("warm_runs")
def test_ctrl_c_stops_the_runs_which_go_on_later(images, tmp_path, capsys):
    """With real processes."""
    flags = ["--methods", "linear", "--seeds", "0", "--lr-grid", "1e-3", "--epochs", "25"]
    run = tmp_path / "out" / "linear" / "lr-0.001" / "seed-0"

    def interrupt() -> None:
        end = time.time() + 90
        while not list((run / "checkpoints").glob("step-*")) and time.time() < end:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert compare(images, tmp_path / "out", *flags) == 130
    again = capsys.readouterr().err
    assert again.startswith("snella: stopped; this goes on: snella compare --data ")
    assert not (run / "summary.json").exists()
    assert "stopped; this goes on" in run.with_name("seed-0.log").read_text()
    reached = len((run / "metrics.jsonl").read_text().splitlines())
    assert reached

    assert main(shlex.split(again.partition("goes on: snella ")[2])) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows if row["kind"] == "val"] == list(range(1, 26))


def test_one_comparison_in_a_folder(images, tmp_path, ran, capsys):
    flags = ("--methods", "linear", "--seeds", "0", "--lr-grid", "1e-3")
    with alone_in(tmp_path, "comparison"):
        assert compare(images, tmp_path, *flags) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message == f"snella: another comparison is at work in {tmp_path}; wait for it, or choose another --out"
    assert not ran
    assert compare(images, tmp_path, *flags) == 0


def test_segmentation(tmp_path, ran, capsys):
    data = masked_runs.write_pairs(tmp_path / "cells")
    flags = ["--methods", "lora", "--seeds", "0", "--lr-grid", "3e-3,1e-2", *masked_runs.MODEL, "--epochs", "1"]
    assert main(["compare", "--data", str(data), "--out", str(tmp_path / "out"), *flags, "--batch-size", "4"]) == 0
    assert "test mIoU" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert report["metric"] == "miou"
    assert [each["kind"] for each in report["methods"][0]["combined"]] == ["best rate alone", "soup", "ensemble"]


@pytest.mark.slow
def test_generation_where_less_is_better(tmp_path, monkeypatch, ran, capsys):
    monkeypatch.setenv("SNELLA_CACHE", str(tmp_path / "cache"))
    pipeline = tiny_pipelines.write_unet(tmp_path / "unet", classes=2)
    data = generation_runs.write_class_folders(tmp_path / "pets")
    flags = [*generation_runs.MODEL, *generation_runs.SAMPLES, "--epochs", "1", "--batch-size", "4"]
    flags += ["--methods", "lora,full", "--seeds", "0", "--lr-grid", "1e-3,1e-2", "--backbone", str(pipeline)]
    command = ["compare", "--data", str(data), "--out", str(tmp_path / "out"), *flags]
    assert main(command) == 0
    for method, lr, val, test in (("lora", 0.001, 0.5, 0.4), ("lora", 0.01, 0.6, 0.1), ("full", 0.001, 0.9, 0.2)):
        losses = {
            split: {"denoising_loss": value} for split, value in (("val", val), ("test", test), ("test_last", test))
        }
        rewrite(tmp_path / "out" / method / f"lr-{lr:g}" / "seed-0", **losses)
    rewrite(tmp_path / "out" / "full" / "lr-0.01" / "seed-0", val={"denoising_loss": 2.0})
    assert main(command) == 0
    lora, full = json.loads((tmp_path / "out" / "compare.json").read_text())["methods"]
    assert (lora["lr"], full["lr"]) == (0.001, 0.001)
    assert full["summary"]["difference_mean"] == pytest.approx(0.2)  # half the loss is better
    shown = capsys.readouterr().out
    assert "0.4000" in shown
    assert (lora["combined"], full["combined"]) == ([], [])
    assert "+0.2000" in shown


def test_a_suite_runs_all_its_tasks(images, tmp_path, monkeypatch, ran, capsys):
    config = TrainConfig.of(data=str(images), backbone="test_vit", pretrained=False, image_size=32, r=4, epochs=1)
    groups = {"a": "natural", "b": "natural", "c": "structured"}
    tasks = tuple(SuiteTask(name, group, config, "no published setting") for name, group in groups.items())
    suite = Suite(
        "toys", "Toys", tasks, (Published("SNELL-32", 76.9, 74.6, "as published"),), ("no test image is seen",)
    )
    monkeypatch.setattr("snella.config.suites.is_suite", lambda recipe: recipe == "toys")
    monkeypatch.setattr("snella.config.suites.read_suite", lambda recipe, data: suite)
    out = tmp_path / "out"
    flags = ["--methods", "linear", "--seeds", "0", "--lr-grid", "1e-3", "--batch-size", "8", "--device", "cpu"]
    command = ["compare", "--recipe", "toys", "--data", str(images), "--out", str(out), *flags]
    assert main(command) == 0
    assert ran == [f"{name}/linear/lr-0.001/seed-0{step}" for step in ("", ", test") for name in groups]
    for name, test in zip(groups, (0.5, 0.7, 0.9), strict=True):
        rewrite(out / name / "linear" / "lr-0.001" / "seed-0", test={"top1": test})
    capsys.readouterr()
    assert main(command) == 0
    shown = capsys.readouterr().out
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in shown.splitlines()]
    assert ["mean of natural", "", "60.0 %"] in cells
    assert ["mean of the 2 groups", "", "75.0 %"] in cells
    assert ["mean of the 3 tasks", "", "70.0 %"] in cells
    assert ["SNELL-32", "76.9 %", "74.6 %", "as published"] in cells
    assert "no test image is seen" in shown
    assert "not the suite's settings alone: --batch-size 8 --device cpu" in shown
    assert (out / "compare.png").exists()
    assert [line["task"] for line in csv.DictReader(io.StringIO((out / "compare.csv").read_text()))] == list(groups)
    assert (out / "a" / "compare.png").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--methods snela", "--methods snela is unknown; did you mean snella?"),
        ("--methods lora,lora", "--methods lora,lora names a value twice"),
        ("--methods=", "--methods is empty"),
        ("--seeds 0,x", "--seeds: x is not a number"),
        ("--seeds -1", "--seed -1 is outside"),
        ("--lr-grid 0", "--lr-grid: 0 is not above 0"),
        ("--lr-grid 1e-7", "--min-lr 1e-05 is above the learning rate 1e-07"),
        ("--lr-grid ,", "--lr-grid is empty"),
        ("--lr 1e-3", "--lr is set by the comparison itself; use --lr-grid"),
        ("--method=lora", "use --methods"),
        ("--resume", "--resume is set by the comparison itself; leave it out"),
        ("--metods lora", "unknown flag --metods; did you mean --methods?"),
        ("--workers 0", "--workers 0 is below 1"),
        ("--epochs x", "--epochs: 'x' is not a whole number"),
        ("--r 7", "--r 7 is not divisible by --heads 2"),
        ("--backbones test_vit,test_resnet --backbone test_vit", "--backbone and --backbones both say what is tuned"),
        ("--backbones hf:a/b,hf-a-b", "--backbones: hf:a/b and hf-a-b would share a folder, hf-a-b"),
        ("--backbones test_vit,Lora", "--backbones: Lora cannot be the name of a folder"),
        (
            "--backbones test_vit,test_vti --no-pretrained",
            "'test_vti' is unknown to timm; did you mean test_vit",
        ),
        ("--backbones test_vit --checkpoint x.pth", "--checkpoint holds the weights of one backbone"),
        (
            "--backbones test_resnet,test_vit --no-pretrained --image-size 40",
            "image size 40 is not a multiple of the patch of test_vit, 16 pixels; try 32 or 48",
        ),
        ("--data nowhere", "nowhere does not exist"),
        ("--recipe vtab1k", "suite vtab1k needs --data, the folder that holds caltech101, cifar, dtd ..."),
    ],
)
def test_wrong_flags_are_one_line_and_nothing_is_written(flags, expected, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = [] if "--data" in flags or "vtab1k" in flags else ["--data", str(images)]
    assert main(["compare", *data, *flags.split()]) == 2
    shown = capsys.readouterr().err
    assert expected in shown
    assert len(shown.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_results_go_to_a_folder_named_by_the_data_unless_said(images, tmp_path, monkeypatch, ran):
    monkeypatch.chdir(tmp_path)
    flags = [*MODEL, *STEPS, "--methods", "linear", "--seeds", "0", "--lr-grid", "1e-3"]
    assert main(["compare", "--data", str(images), *flags]) == 0
    assert (tmp_path / "runs" / "compare-images" / "compare.csv").exists()


def test_results_go_into_no_other_folder(images, tmp_path, capsys):
    """Into the data a method's folder would be one more class."""
    before = sorted(images.rglob("*"))
    assert compare(images, images, "--methods", "linear") == 2
    assert f"{images} exists and is not a comparison; choose another --out" in capsys.readouterr().err
    assert sorted(images.rglob("*")) == before


def test_what_stands_in_the_way_is_named(images, tmp_path, ran, capsys):
    foreign = tmp_path / "linear" / "lr-0.001" / "seed-0"
    foreign.mkdir(parents=True)
    (foreign / "thesis.txt").touch()
    assert compare(images, tmp_path, "--methods", "linear", "--lr-grid", "1e-3") == 2
    assert f"{foreign} exists and is not a run folder" in capsys.readouterr().err
    assert ran == []


def test_a_recipe_gives_defaults(images, tmp_path, ran):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"data: {images}\nbackbone: test_vit\npretrained: false\nimage_size: 32\nepochs: 1\nmethod: snell\n"
    )
    flags = ["--methods", "linear", "--seeds", "1", "--lr-grid", "1e-3", "--batch-size", "8", "--device", "cpu"]
    assert main(["compare", "--recipe", str(recipe), "--out", str(tmp_path / "out"), *flags, "--smoke"]) == 0
    config = read_recipe(str(tmp_path / "out" / "linear" / "lr-0.001" / "seed-1" / "config.yaml"))
    assert (config.method.name, config.seed, config.loop.epochs, config.smoke, config.test) == (
        "linear",
        1,
        1,
        True,
        "both",
    )
    assert main(["compare", "--recipe", str(recipe), "--out", str(tmp_path / "out"), *flags, "--smoke"]) == 0
    assert len(ran) == 2
