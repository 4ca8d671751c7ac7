"""The page in Gradio: where images are dropped or a prompt is typed, and where the answers stand."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import gradio  # pyright: ignore[reportMissingImports] (it is an environment of its own that has it)

from snella.app.answers import AppRun, answer_images, answer_prompt, as_html
from snella.errors import UserError, printable, short_reason

MOST_MADE = 8  # images that are made at once
LARGEST_SEED = 2**31 - 1  # beyond 2**53 a browser's numbers are not whole
OURS = "snella-answers"  # the element that the answers stand in


def build(runs: Sequence[AppRun]) -> gradio.Blocks:
    """Return the page of these runs; nothing is told to anybody else, and its functions are no public API."""
    with gradio.Blocks(title="snella", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.HTML(as_html("head.html", runs=runs))
        if runs[0].run.task.generates:
            _generation(runs)
        else:
            _images(runs)
    return page


def _images(runs: Sequence[AppRun]) -> None:
    has_maps = any(shown.explain is not None for shown in runs)
    files = gradio.File(file_count="multiple", type="filepath", label="Drop images here")
    heat = gradio.Checkbox(True, label="Show what speaks for the class", visible=has_maps)
    answers = gradio.HTML("", elem_id=OURS)

    def predict(paths: list[str] | None, heat: bool) -> str:
        answered, notes = answer_images(runs, paths, heat=heat) if paths else ([], [])
        return as_html("answers.html", answered=answered, notes=notes, runs=runs)

    _on([files.change, heat.change], predict, [files, heat], answers)


def _generation(runs: Sequence[AppRun]) -> None:
    saved, prompts = runs[0].run.saved, runs[0].run.learner.prompts
    first = prompts[0] if prompts else ""
    if saved["condition"] == "class":
        prompt: Any = gradio.Dropdown(list(saved["classes"]), value=first, label="Class")
    else:
        prompt = gradio.Textbox(first, label="Prompt", visible=saved["condition"] != "none")
    with gradio.Row():
        seed = gradio.Number(0, label="Seed", precision=0, minimum=0, maximum=LARGEST_SEED)
        count = gradio.Slider(1, MOST_MADE, value=1, step=1, label="Images")
    button = gradio.Button("Make images", variant="primary")
    answers = gradio.HTML("", elem_id=OURS)

    def generate(prompt: str | None, seed: float | None, count: float) -> str:
        whole = min(max(int(seed or 0), 0), LARGEST_SEED)
        answered = answer_prompt(runs, prompt, whole, min(max(int(count), 1), MOST_MADE))
        return as_html("answers.html", answered=answered, notes=[], runs=runs)

    _on([button.click], generate, [prompt, seed, count], answers)


def _on(events: Sequence[Any], answer: Callable[..., str], inputs: Sequence[Any], output: Any) -> None:
    """Let events be answered, one at a time, whatever happens: errors become words on the page."""

    def guarded(*values: Any) -> str:
        try:
            return answer(*values)
        except UserError as error:
            problem = str(error)
        except Exception as error:  # a page has no --debug: a line on the terminal says what it was
            problem = f"fault in snella: {type(error).__name__}: {short_reason(error)}"
            print(printable(f"snella: {problem}"), file=sys.stderr, flush=True)
        return as_html("answers.html", answered=[], notes=[problem], runs=())

    gradio.on(
        list(events), guarded, list(inputs), output, api_visibility="private", concurrency_id="model",
        concurrency_limit=1,
    )  # fmt: skip
