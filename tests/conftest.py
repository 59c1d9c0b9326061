from __future__ import annotations

import os

import torch

# Tests run in several processes side by side; more threads than cores make them slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
