"""What two processes compute together is what one computes, and the same in both."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from snella.tasks.segmentation.learner import dice_loss
from support import exchanges, several
from support.exchanges import images, looped, masked, step, wrapped

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def found(python: str, tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("exchanges")
    for process in several.ended(several.start(python, 2, exchanges.__file__, str(folder))):
        assert process.code == 0, process.err
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize(("work", "rows"), [("stepped", exchanges.ROWS), ("stepped_alone", 1)])
def test_a_divided_step_is_the_step_of_the_batch(found: Found, work: str, rows: int) -> None:
    """With batch norms, dropout, parts that are not alike, and a part without a row."""
    parts = [process[work] for process in found]
    torch.testing.assert_close(parts[0], parts[1], rtol=0, atol=0)
    assert parts[0]["loss"].isfinite()
    if rows == 1:
        return  # of which torch's own norm over vectors has no variance
    whole = step(None, images()[:rows])
    assert "unused" not in whole["gradients"]
    for part in parts:
        torch.testing.assert_close(part, whole, rtol=1e-7, atol=1e-9)


def test_dice_is_that_of_the_whole_batch(found: Found) -> None:
    logits, masks = masked()
    logits.requires_grad_()
    loss = dice_loss()(logits, masks)
    loss.backward()
    for process in found:
        torch.testing.assert_close(process["diced"]["loss"], loss.detach())
        torch.testing.assert_close(process["diced"]["gradient"], logits.grad)


@pytest.mark.parametrize(("loop", "target"), [("user_loop", 0.9), ("user_loop_to_nothing", 0.9999)])
def test_a_loop_of_a_users_own_in_ddp_keeps_processes_equal(found: Found, loop: str, target: float) -> None:
    first, second = (process[loop] for process in found)
    assert first["kept"] == second["kept"]
    torch.testing.assert_close(first["weights"], second["weights"], rtol=0, atol=0)
    model = wrapped(target)
    alone = looped(model, model, images()[:4])
    torch.testing.assert_close(first["weights"], alone["weights"], rtol=1e-4, atol=1e-6)
    for name, kept in alone["kept"].items():
        assert all(abs(a - b) <= 2 for a, b in zip(first["kept"][name], kept, strict=True))  # sums in another order


def test_the_transformers_trainer_keeps_processes_equal(found: Found) -> None:
    first, second = (process["by_trainer"] for process in found)
    assert first["rows"] == 2
    assert first["kept"] == second["kept"]
    assert first["saved"] == ["allocator.safetensors"]
    torch.testing.assert_close(first["weights"], second["weights"], rtol=0, atol=0)


def test_what_differs_is_refused_by_both(found: Found) -> None:
    first, second = (process["refusals"] for process in found)
    assert first == second
    assert first["budgets"].startswith("process 1 has other budgets after step 4 than process 0; their machines")
    assert first["same budgets"] == ""
    assert first["weights"].startswith("process 1 has other weights than process 0")
    assert first["first"] == "said by the first"
    assert first["evaluation"] == "an image of the second"


def test_values_are_the_first_processs(found: Found) -> None:
    for process in found:
        assert process["values"]["first"] == "of 0"
        assert process["values"]["all"] == [0, 1]
        assert all(not tensor.any() for tensor in process["values"]["tensors"])
