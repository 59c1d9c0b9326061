"""Training throughput on one and on two processes, one thread each (DistributedDataParallel, gloo)."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.nn.parallel import DistributedDataParallel

from benchmarks.step import PATCHES, components
from medcoarse.confusion import Annotations
from medcoarse.networks import CoupledModel

NAME = next(iter(PATCHES))


def _worker(rank: int, world: int, port: int, seconds: float, queue: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    torch.manual_seed(rank)
    segmenter, annotator, loss = components(NAME, None)
    model = DistributedDataParallel(CoupledModel(segmenter, annotator))
    optimizer = torch.optim.AdamW(model.parameters())
    image = torch.randn(PATCHES[NAME])
    label = torch.randint(0, 2, (len(image), 1, *image.shape[2:]), dtype=torch.uint8)
    target = Annotations(positive=label, negative=1 - label, image=image)
    steps = 0
    for warm in (True, False):
        dist.barrier()
        start = time.perf_counter()
        going = torch.ones(())
        while going:
            optimizer.zero_grad()
            loss(model(image), target).backward()
            optimizer.step()
            steps += not warm
            going = torch.tensor(float(time.perf_counter() - start < (1 if warm else seconds)))
            dist.all_reduce(going, dist.ReduceOp.MIN)
    elapsed = time.perf_counter() - start
    if rank == 0:
        queue.put(world * steps * len(image) / elapsed)
    dist.destroy_process_group()


def run(seconds: float) -> dict[str, Any]:
    """Patches a second for each number of processes; every process has the bundle's whole batch (weak scaling)."""
    rates = {}
    for world in (1, 2):
        queue = multiprocessing.get_context("spawn").SimpleQueue()
        multiprocessing.spawn(_worker, (world, _free_port(), seconds, queue), nprocs=world)
        rates[str(world)] = queue.get()
    return {"patches_a_second": rates, "cores": os.cpu_count()}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rows(results: dict[str, Any]) -> list[list[str]]:
    """The table of the README."""
    rates = results["patches_a_second"]
    lines = [["processes of one thread", "patches a second", "efficiency"]]
    return lines + [[n, f"{rate:.1f}", f"{rate / rates['1'] / int(n):.2f}"] for n, rate in rates.items()]
