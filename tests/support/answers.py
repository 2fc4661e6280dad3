"""Predictions written down in short, and directories of them as `mixlora evaluate` leaves them."""

import json
from dataclasses import asdict

from mixlora.common.files import file_name
from mixlora.evaluation.predictions import Prediction
from mixlora.evaluation.results import Results
from mixlora.evaluation.scoring.metrics import score

TRUTH = ["1", "2", "3", "4", "5", "6", "7", "8"]
FIRST = {"a": "1234xxxx", "b": "123456xx", "c": "1xxxxxxx"}
SECOND = {"a": "12345678", "b": "12345xxx", "c": "x2xxxxxx"}


def predictions(*pairs, task="t", **more):
    """One for each (predict, target), with the ids 0, 1, ..."""
    return [Prediction(str(i), task, "?", said, target, **more) for i, (said, target) in enumerate(pairs)]


def coded(letters, image=False):
    """Yes-or-no answers: t, f truly and falsely yes; n, m truly and falsely no; u no answer to a yes."""
    codes = {"t": ("Yes", "yes"), "f": ("Yes", "no"), "n": ("No", "no"), "m": ("No", "yes"), "u": ("Hm", "yes")}
    return [
        Prediction(str(i), "t", "?", *codes[letter], image_path=f"{i // 2}.png" if image else None)
        for i, letter in enumerate(letters)
    ]


def evaluation(folder, label, answers, totals=None):
    """A directory as `mixlora evaluate` leaves it: {task: one character for each of eight questions}."""
    found = Results(label, meta={"config": {"draws": 100, "seed": 1}})
    (folder / "predictions").mkdir(parents=True)
    for task, said in answers.items():
        asked = [Prediction(str(k), task, "?", one, TRUTH[k]) for k, one in enumerate(said)]
        found.add(task, score(asked, "exact", draws=100, seed=1))
        rows = "".join(json.dumps(asdict(one)) + "\n" for one in asked)
        (folder / "predictions" / f"{file_name(task)}.jsonl").write_text(rows)
    found.add_totals(totals or {})
    found.save(folder)
    return folder
