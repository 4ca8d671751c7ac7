"""What two processes do together, each for itself: exchanges.py FOLDER leaves what each has found in FOLDER/RANK.pt."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from snella.data.masks.files import IGNORE
from snella.distributed import world
from snella.distributed.draws import as_whole_batches
from snella.distributed.evaluation import all_parts, divided_evaluation
from snella.distributed.part import Part, computing, part_of, part_of_mean
from snella.distributed.step import check_budgets, check_weights, sum_gradients
from snella.errors import UserError
from snella.tasks.segmentation.learner import whole_dice
from support.tuned import budgets, tuned, tuner_of
from support.vits import tiny_vit

ROWS = 5  # of a batch: a process has 2, the other 3
STEPS = 6


def images() -> Tensor:
    return torch.randn(ROWS, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Batch norms over images and over vectors, dropout, and a parameter that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.drop, self.line = nn.Dropout(0.4), nn.Linear(4, 6)
        self.last = nn.BatchNorm1d(6)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.line(self.drop(F.relu(self.norm(self.conv(x)))).mean((2, 3))))


def step(part: Part | None, rows: Tensor) -> dict[str, Any]:
    """Return loss, gradients and running statistics of a step on rows of a batch."""
    model = Net().double()
    torch.manual_seed(7)
    with as_whole_batches(model), computing(part):
        loss = part_of_mean(model(rows.double()).sin().mean(), len(rows))
        if part is not None and not part.counts:
            loss = loss * 0
        loss.backward()
    loss = loss.detach()
    if part is not None:
        loss, _ = sum_gradients(model, loss, None)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss, "gradients": gradients, "buffers": dict(model.named_buffers())}


def own_part(rows: int = ROWS) -> Part:
    return part_of(world.share(), rows)


def stepped() -> dict[str, Any]:
    part = own_part()
    return step(part, images()[part.start : part.stop])


def stepped_alone() -> dict[str, Any]:
    """A batch of one row: a process has none."""
    part = own_part(1)
    return step(part, images()[part.start : part.stop])


def masked() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(4)
    masks = torch.randint(0, 3, (ROWS, 6, 6), generator=rng)
    masks[2, :3] = IGNORE
    masks[:4][masks[:4] == 1] = 0  # a class that one process alone has
    return torch.randn(ROWS, 4, 6, 6, generator=rng), masks


def diced() -> dict[str, Tensor]:
    part, (logits, masks) = own_part(), masked()
    logits.requires_grad_()
    rows = slice(part.start, part.stop)
    with computing(part):
        loss = whole_dice(logits[rows], masks[rows])
        loss.backward()
    assert logits.grad is not None
    return {"loss": world.summed(loss.detach()), "gradient": world.summed(logits.grad)}


def wrapped(target: float = 0.9) -> Any:
    torch.manual_seed(0)
    return tuned(tiny_vit(), total_step=STEPS, target_sparsity=target, init_sparsity=0.0)


def looped(called: Any, model: Any, rows: Tensor) -> dict[str, Any]:
    """A loop of a user's own; returns budgets and weights."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for number in range(1, STEPS + 1):
        called(rows).square().mean().backward()
        optimizer.step()
        tuner_of(model).update_and_allocate(number)
        optimizer.zero_grad()
    return {"kept": budgets(model), "weights": {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}}


def user_loop(target: float = 0.9) -> dict[str, Any]:
    model, rank = wrapped(target), dist.get_rank()
    rows = images()[:4]
    return looped(DistributedDataParallel(model), model, rows[2 * rank : 2 * rank + 2])


def user_loop_to_nothing() -> dict[str, Any]:
    """Matrices without a single entry left have no update, and their factors no gradient of their own."""
    return user_loop(0.9999)


def told(work: Any) -> str:
    try:
        work()
    except UserError as error:
        return str(error)
    return ""


def refusals() -> dict[str, str]:
    rank = dist.get_rank()

    def fail() -> None:
        raise UserError("said by the first")

    def evaluation() -> None:
        with divided_evaluation(0):
            if rank:
                raise UserError("an image of the second")
            all_parts(1)

    return {
        "budgets": told(lambda: check_budgets({"kept": {"a": 3 + rank}}, 4)),
        "same budgets": told(lambda: check_budgets({"kept": {"a": 3}}, 5)),
        "weights": told(lambda: check_weights({"a": torch.full((2,), 1.0 + 1e-7 * rank)})),
        "first": told(lambda: world.from_first(fail)),
        "evaluation": told(evaluation),
    }


def values() -> dict[str, Any]:
    rank = dist.get_rank()
    tensors = [torch.full((2, 3), float(rank)), torch.tensor(rank), torch.full((4,), rank, dtype=torch.bool).T]
    world.same_tensors(tensors)
    return {"first": world.from_first(lambda: f"of {rank}"), "tensors": tensors, "all": world.gathered(rank)}


def by_trainer(folder: Path) -> dict[str, Any]:
    from integrations.test_trainer import model_of, trainer

    found = trainer(folder / "trainer", 4, save_steps=2)
    found.train()
    model = model_of(found)
    saved = sorted(path.name for path in (folder / "trainer" / "checkpoint-2").glob("allocator*"))
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return {"kept": budgets(model), "weights": weights, "saved": saved, "rows": found.args.world_size}


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    works = (stepped, stepped_alone, diced, user_loop, user_loop_to_nothing, refusals, values)
    found = {work.__name__: work() for work in works}
    found["by_trainer"] = by_trainer(folder)
    torch.save(found, folder / f"{os.environ['RANK']}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
