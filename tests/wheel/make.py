"""With the full install: write an artifact, and what it answers, to the folder that is given."""

from __future__ import annotations

import sys
from pathlib import Path

import digits
import numpy as np

import tauten

out = Path(sys.argv[1])
task = digits.task().fit(seed=0)
small = tauten.quantize(task, method="dynamic")
tauten.save(small, out / "artifact", task=task)
tauten.save(small, out / "coded", task=task, codec="arithmetic")
images = digits.rows(3)[0][0][:4]
answer = tauten.load(out / "artifact")({"image": images})["output"]
np.savez(out / "answer.npz", image=images, output=answer)
