"""What each process that a test starts with torchrun does: look for a checkpoint that only the first one has.

torchrun --nproc-per-node 2 shared_checkpoint.py FOLDER
"""

import sys
from pathlib import Path

import torch

from pipeline.checkpoint import Checkpoint
from pipeline.distributed import join, leave
from pipeline.fit_state import load_kept

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    world = join(torch.device("cpu"))
    checkpoint = Checkpoint(folder / f"{world.rank}.safetensors", {}, 1, writes=world.leads())
    checkpoint.save({"weight": torch.zeros(1)}, {"finished": False, "epoch": 2, "done": 5})
    try:
        load_kept(checkpoint)
    except ValueError as error:
        (folder / f"{world.rank}.txt").write_text(str(error), encoding="utf-8")
    leave()
