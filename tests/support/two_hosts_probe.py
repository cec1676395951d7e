"""One of two hosts: a learner rank of two, and one end of a broadcast. Prints what both gave as JSON.

Arguments: the rank, the host's own address, the first host's address, a file for what the second host must know.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from rlsys.weights.broadcast import BroadcastSender, receive_broadcast
from rlsys.weights.manifest import Bucket, NamedTensor, Rendezvous, TensorSpec, WeightTransfer, manifest_of
from rlsys.weights.sockets import rank_sockets
from tests.support.pace import patience

TIMEOUT_S = patience(60.0)
PORT = 7777
SENT = {"w": NamedTensor(spec=TensorSpec(shape=(6,), dtype="float32"), data=np.arange(6, dtype=np.float32).view("u1"))}


def main(rank: int, own: str, first: str, file: Path) -> None:
    os.environ.update(rank_sockets(own, ranks_share_node=False, engines_join=True))
    bucket, timeout = Bucket(names=("w",), num_bytes=24, stored=None), datetime.timedelta(seconds=TIMEOUT_S)
    if rank == 0:
        sender = BroadcastSender(own, 1, TIMEOUT_S)
        store = dist.TCPStore(own, PORT, 2, is_master=True, wait_for_workers=False, timeout=timeout)
        file.with_suffix(".new").write_text(json.dumps(asdict(sender.rendezvous)))
        file.with_suffix(".new").rename(file)
    else:
        while not file.exists():
            time.sleep(0.05)
        store = dist.TCPStore(first, PORT, 2, is_master=False, timeout=timeout)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timeout)
    found = torch.tensor([float(rank + 1)])
    dist.all_reduce(found)
    if rank == 0:
        sent = sender.send([bucket], manifest_of(SENT), lambda _: SENT)
        moved = [sent.num_receivers, sent.num_bytes]
    else:
        rendezvous = Rendezvous(**json.loads(file.read_text()))
        transfer = WeightTransfer(buckets=(bucket,), timeout_s=TIMEOUT_S, rendezvous=rendezvous)
        [(_, received, _)] = receive_broadcast(transfer, [bucket], manifest_of(SENT))
        moved = received["w"].data.view(np.float32).tolist()
    dist.barrier()
    sys.stdout.write(json.dumps({"sum": found.item(), "moved": moved}) + "\n")
    sys.stdout.flush()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]))
