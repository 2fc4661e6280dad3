"""Made-up ReportData for the page: every number is drawn from a seed, so a test can say what a cell must show."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

TASKS = ["ink", "word", "count", "colour", "shape", "place"]
LABELS = ["LoRA r=4", "MixLoRA E=16 r=4", "third", "fourth"]
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
HOSTILE = [
    "<b onclick=\"window.hurt='b'\">bold</b>",
    "</script><script>window.hurt='script'</script>",
    '"\'><img src=x onerror="window.hurt=1">',
    "\N{PILE OF POO}\N{ZERO WIDTH JOINER}\N{FIRE} emoji",
    "\u05e9\u05dc\u05d5\u05dd \u202eright to left",
    "long " + "x" * 195,
    "bell\x07nul\x00escape\x1b[31m\ud800\u2028line",
    "__proto__",
    "{{ 7 * 7 }} ${window.hurt=2} &lt;i&gt;",
]
VALUES = [
    ("interference", pairs, reduce)
    for pairs in ("leave-one-out", "all")
    for reduce in ("mean-of-ratios", "ratio-of-means")
]
CHOICES = [*VALUES, ("delta", "leave-one-out", None), ("cosine", None, None), ("conflict_rate", None, None)]


def report(
    runs: int = 1, tasks: list[str] | None = None, layers: int = 4, seed: int = 0, trainings: tuple[str, ...] = ()
) -> dict:
    """A whole ReportData of so many runs: checkpoints of trainings of these names in turn, if there are any."""
    tasks = TASKS if tasks is None else tasks
    random = np.random.default_rng(seed)
    scopes = _scopes(layers)
    choices = [
        {"key": "/".join(filter(None, parts)), "metric": parts[0], "pairs": parts[1], "reduce": parts[2]}
        for parts in CHOICES
    ]
    along = [(trainings[k % len(trainings)], 200.0 * (k // len(trainings))) for k in range(runs if trainings else 0)]
    labels = [f"{name} step {step:.0f}" for name, step in along] or LABELS[:runs]
    made = [_run(random, label, tasks, scopes, choices, layers) for label in labels]
    pairs = [(a, b) for a, b in itertools.product(tasks, tasks) if a != b]
    return {
        "title": "Task interference: " + " and ".join(labels[:2]),
        "made": "2026-11-23T12:00:00+00:00",
        "versions": {"task-interference": "0.1.0", "torch": "2.13.0"},
        "headline": _headline(tasks),
        "advice": ["Train ink and word apart: a suggested split stands below.", "count lacks signal: take 120."],
        "conventions": ["Rows are the affected task, columns the stepped task.", "Intervals: 95 %, by bootstrap."],
        "left_out": ["12 of 40 scopes are not on this page: the budget is 250,000 cells."],
        "tasks": tasks,
        "scopes": scopes,
        "choices": choices,
        "runs": made,
        "differences": [
            _difference(random, made, a, b, scopes, choices)
            for a, b in itertools.combinations(range(runs), 2)
            if runs in (2, 4) and not trainings
        ],
        "dependence": [_dependence(labels, tasks)],
        "horizons": [],
        "validations": [],
        "trajectory": [
            _point(random, a, b) | {"run": k, "series": name, "step": step}
            for k, (name, step) in enumerate(along) for a, b in pairs
        ],
    }  # fmt: skip


def index(data: dict, affected: str, stepped: str) -> int:
    return data["tasks"].index(affected) * len(data["tasks"]) + data["tasks"].index(stepped)


def _headline(tasks: list[str]) -> list[str]:
    if len(tasks) < 2:
        return [f"One task, {tasks[0]}: interference needs two, so only its own signal is shown."]
    return [
        f"4 of {len(tasks) * (len(tasks) - 1)} pairs of tasks conflict beyond noise; worst: a step of {tasks[0]} on "
        f"{tasks[1]}, I = −0.80 [−1.10, −0.50].",
        "3 pairs help each other; the rest cannot be told from noise with these 50 examples a task.",
    ]


def _scopes(layers: int) -> list[dict]:
    one = [("all", m, s) for m in ("all", "attention", "mlp") for s in ("both", "A", "B")] + [("all", "q_proj", "both")]
    deep = [(str(k), m, s) for k in range(layers) for m in ("attention", "mlp") for s in ("A", "B")]
    return [{"key": "/".join(parts), "layers": parts[0], "modules": parts[1], "side": parts[2]} for parts in one + deep]


def _run(random: Any, label: str, tasks: list[str], scopes: list, choices: list, layers: int) -> dict:
    cells = {s["key"]: {c["key"]: _cells(random, len(tasks), c["metric"]) for c in choices} for s in scopes}
    kinds = ("conflict", "synergy", "unclear", "no-signal")
    first = {scope: next(iter(of.values()))["verdict"] for scope, of in cells.items()}
    return {
        "label": label,
        "source": f"runs/{label}",
        "kind": "MixLoRA" if "Mix" in label else "LoRA",
        "blocks": 4 * layers,
        "units": dict.fromkeys(tasks, 50),
        "loss": {task: float(random.uniform(0.5, 2)) for task in tasks},
        "cells": cells,
        "counts": {scope: {kind: verdicts.count(kind) for kind in kinds} for scope, verdicts in first.items()},
        "null": [{"task": task, **_interval(random, 1, 0.15)} for task in tasks],
        "signal": [
            {"task": t, "effective": 27.5, "squared_norm": 0.013, "unit_noise": 0.4, "snr": 1.6, "reliability": 0.62}
            | {"balance": None}
            for t in tasks
        ],
        "profile": [
            _point(random, a, b) | {"layer": layer, "modules": modules, "side": side}
            for a, b in itertools.product(tasks[:6], tasks[:6]) if a != b
            for layer in range(layers) for modules in ("attention", "mlp") for side in ("both", "A", "B")
        ],
        "grouping": _grouping(random, tasks) if len(tasks) > 2 else None,
        "drivers": _drivers(tasks),
        "notes": ["3 blocks are zero throughout and do not count."],
    }  # fmt: skip


def _cells(random: Any, size: int, metric: str) -> dict:
    scale = {"delta": 0.004, "conflict_rate": 0.2}.get(metric, 0.6)
    value = random.normal(0.5 if metric == "conflict_rate" else 0, scale, (size, size))
    value = np.abs(value) if metric == "conflict_rate" else value
    np.fill_diagonal(value, 1)
    half = np.abs(random.normal(scale * 0.7, scale * 0.3, (size, size)))
    verdict = np.where(value + half < 0, "conflict", np.where(value - half > 0, "synergy", "unclear")).astype(object)
    verdict[-1, :] = "no-signal" if size > 2 else "unclear"
    np.fill_diagonal(verdict, "self")
    columns = {"value": value, "low": value - half, "high": value + half}
    columns |= {name: random.uniform(0, 0.4, value.shape) for name in ("q", "nonpositive", "leverage")}
    lists = {name: [float(x) for x in column.ravel()] for name, column in columns.items()}
    if size > 3:
        lists["value"][3] = lists["low"][3] = lists["high"][3] = None
    return lists | {"verdict": [str(x) for x in verdict.ravel()]}


def _difference(random: Any, runs: list[dict], first: int, second: int, scopes: list, choices: list) -> dict:
    def cells(scope: str, choice: str) -> dict:
        a, b = (runs[k]["cells"][scope][choice] for k in (first, second))
        value = [None if x is None or y is None else y - x for x, y in zip(a["value"], b["value"], strict=True)]
        half = [abs(float(random.normal(0.5, 0.3))) for _ in value]
        low = [None if x is None else x - h for x, h in zip(value, half, strict=True)]
        high = [None if x is None else x + h for x, h in zip(value, half, strict=True)]
        words = [
            "unclear" if x is None else "higher" if x > 0 else "lower" if y < 0 else "unclear"
            for x, y in zip(low, high, strict=True)
        ]
        return {"value": value, "low": low, "high": high, "q": [0.02 for _ in value], "verdict": words}

    return {
        "first": first,
        "second": second,
        "cells": {s["key"]: {c["key"]: cells(s["key"], c["key"]) for c in choices} for s in scopes},
        "words": "MixLoRA lifts 6 of 30 pairs beyond noise and lowers 4.",
    }


def _dependence(labels: list[str], tasks: list[str]) -> dict:
    """Tasks 0 and 1 share pictures: 8 of 20 and of 40; the others share none."""
    overlap = np.eye(len(tasks))
    if shared := len(tasks) > 1:
        overlap[0, 1], overlap[1, 0] = 0.4, 0.2
    return {
        "labels": labels,
        "assumed": "Units of different groups are taken as independent.",
        "found": f"Here {50 * len(tasks)} units form {40 * len(tasks)} groups.",
        "tasks": tasks,
        "groups": [20, *[40] * (len(tasks) - 1)],
        "overlap": overlap.tolist(),
        "shown": [0, 1] if shared else [],
        "sharing": 2 if shared else 0,
    }


def _grouping(random: Any, tasks: list[str]) -> dict:
    distance = random.uniform(0.2, 1.8, (len(tasks), len(tasks)))
    distance = distance + distance.T
    np.fill_diagonal(distance, 0)
    merges = linkage(squareform(distance), "average")
    order = [tasks[k] for k in leaves_list(merges)]
    return {
        "order": order,
        "merges": merges.tolist(),
        "split": [order[: len(order) // 2], order[len(order) // 2 :]],
        "words": "Two groups keep 82 % of the synergy and lose 71 % of the conflict.",
    }


def _drivers(tasks: list[str]) -> list[dict]:
    if len(tasks) < 2:
        return []
    example = {"answer": "seven", "source": "word.json#12", "share": 0.31}
    return [
        {"affected": tasks[1], "stepped": tasks[0], "value": -0.8, "examples": [
            {"side": "affected", "prompt": f"How many letters does {tasks[0]} show?", "thumbnail": PIXEL, **example},
            {"side": "affected", "prompt": "Which word is it?", "thumbnail": None, **example},
            {"side": "stepped", "prompt": "Is there ink? " * 20, "thumbnail": "https://example.com/x.png", **example}]},
    ]  # fmt: skip


def _interval(random: Any, centre: float, spread: float) -> dict:
    value, half = float(random.normal(centre, spread)), float(abs(random.normal(2 * spread, spread / 2)))
    return {"value": value, "low": value - half, "high": value + half}


def _point(random: Any, affected: str, stepped: str) -> dict:
    return {"affected": affected, "stepped": stepped, **_interval(random, -0.1, 0.3)}
