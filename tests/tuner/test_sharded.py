"""Budgets of a model that two processes share."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from snella.errors import UserError
from support.tuned import budgets, tuned, tuner_of
from support.vits import tiny_vit


def train(model: Any, called: Any, steps: int = 3) -> dict[str, list[int]]:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD([p for p in called.parameters() if p.requires_grad], lr=0.01)
    for step in range(1, steps + 1):
        called(images).square().sum().backward()
        optimizer.step()
        tuner_of(model).update_and_allocate(step)
        optimizer.zero_grad()
    return budgets(model)


def wrapped() -> Any:
    torch.manual_seed(0)
    return tuned(tiny_vit(), total_step=10, target_sparsity=0.9)


def process(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = wrapped()
    mesh = init_device_mesh("cpu", (2,))
    for block in model.base_model.model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    kept = train(model, model)
    flat = wrapped()
    try:
        train(flat, FullyShardedDataParallel(flat, use_orig_params=True, device_id=torch.device("cpu")))
        told = ""
    except UserError as error:
        told = str(error)
    torch.save((kept, told), Path(folder, str(rank)))
    dist.destroy_process_group()


def test_fsdp2_allocates_as_one_process_does_and_fsdp1_is_refused(tmp_path: Path) -> None:
    model = wrapped()
    expected = train(model, model)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(process, args=(port, str(tmp_path)), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    for rank in "01":
        kept, told = torch.load(tmp_path / rank)
        assert kept.keys() == expected.keys()
        for name, own in expected.items():
            assert all(abs(a - b) <= 2 for a, b in zip(kept[name], own, strict=True))  # sums in another order
        assert told.startswith("FullyShardedDataParallel has flattened the adapter's factors")
