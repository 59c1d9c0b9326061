from __future__ import annotations

import os

import torch

# A script: imported, it would load 3D Slicer's libraries beside those of SimpleITK.
collect_ignore = ["slicer_scene.py"]

# Tests run in several processes side by side; more threads than cores make them slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
