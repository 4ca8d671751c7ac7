"""SNELLA's rows in PEFT's test matrices, in the form of each."""

from __future__ import annotations

from typing import Any

from snella import SnellaConfig

VISIBLE: dict[str, Any] = {"r": 8, "heads": 2, "gate": "hard", "start_scale": 5.0}  # an update that tests can see


class SuiteConfig(SnellaConfig):
    """SNELLA's config with PEFT's `init_weights`: where it is true, a new adapter changes nothing."""

    def __init__(self, *, init_weights: bool = True, **settings: Any) -> None:
        values: dict[str, Any] = VISIBLE | {"start": "zero" if init_weights else "drawn"} | settings
        super().__init__(**values)


def row(name: str, model: str, *targets: str, **settings: Any) -> tuple[str, str, type[SnellaConfig], dict[str, Any]]:
    return (f"{name} SNELLA", model, SuiteConfig, {"target_modules": list(targets)} | settings)


CUSTOM = [
    row("Vanilla MLP 1", "MLP", "lin0"),
    row("Vanilla MLP 2", "MLP", "lin0", target_modules="lin0"),
    row("Vanilla MLP 3", "MLP", "lin0", "lin1", r=2),
    row("Vanilla MLP 4", "MLP", "lin0", modules_to_save=["lin1"]),
    row("Vanilla MLP 5", "MLP", "lin0", kernel="pwl", gate="hard", target_sparsity=0.5),
    row("MLP LayerNorm", "MLP_LayerNorm", "lin0"),
    row("transformers Conv1D", "EmbConv1D", "conv1d"),
    row("Conv1d", "Conv1d", "conv1d"),
    row("Conv2d 1", "Conv2d", "conv2d"),
    row("Conv2d 2", "Conv2d", "conv2d", "lin0"),
    row("Conv2d 1x1", "Conv2d1x1", "conv2d"),
    row("Conv2d bigger", "Conv2d2", "conv2d", "lin0"),
    row("Conv2d Groups", "Conv2dGroups", "conv2d"),
    row("Conv2d Groups2", "Conv2dGroups2", "conv2d"),
    row("Conv3d 1", "Conv3d", "conv3d"),
    row("Conv3d 2", "Conv3d", "conv3d", "lin0"),
]
SAME = ("SNELLA Same", "snella", SuiteConfig, {"target_modules": ["lin0"], "init_weights": False})
ACTIVE = [
    (*SAME, {"target_modules": ["lin0"], "init_weights": False}),
    ("SNELLA Different", *SAME[1:], {"target_modules": ["lin1"], "init_weights": False}),
]


def of_task(task: str, **settings: Any) -> list[tuple[type[SnellaConfig], dict[str, Any]]]:
    return [(SuiteConfig, {"task_type": task, "target_modules": None} | settings)]


ROWS: dict[tuple[str, str], list[Any]] = {
    ("test_custom_models", "TEST_CASES"): CUSTOM,
    ("test_custom_models", "MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES"): ACTIVE,
    ("test_decoder_models", "ALL_CONFIGS"): of_task("CAUSAL_LM"),
    ("test_encoder_decoder_models", "ALL_CONFIGS"): of_task("SEQ_2_SEQ_LM"),
    ("test_feature_extraction_models", "ALL_CONFIGS"): of_task("FEATURE_EXTRACTION"),
    ("test_seq_classifier", "ALL_CONFIGS"): of_task("SEQ_CLS"),
    ("test_token_classification_qa", "TOKEN_CLS_CONFIGS"): of_task("TOKEN_CLS"),
    ("test_token_classification_qa", "QA_CONFIGS"): of_task("QUESTION_ANS"),
}
