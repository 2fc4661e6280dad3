"""One gradient for each task of a step, combined as by a slow loop over single examples and TorchJD itself."""

import json
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from torchjd import aggregation
from torchjd.linalg import QuadprogProjector
from transformers import Trainer, set_seed

from mixlora.checkpoints import loading
from mixlora.checkpoints.prompting import load_collator
from mixlora.common import settings
from mixlora.common.errors import CheckpointError, ConfigError, TrainingError
from mixlora.training import run
from mixlora.training.combining import Combination
from mixlora.training.config import Combine, RecipeSection, load
from mixlora.training.corpus import gather
from mixlora.training.methods import prepare
from mixlora.training.order import Epochs
from mixlora.training.trainer import Batches, TaskTrainer
from tests.support.trainings import made, values

torch.set_num_threads(1)
WORDS = ["red", "green", "blue", "one", "two", "three", "four", "five", "six", "seven"]
AGGREGATORS = [str(name) for name in Combine if name != Combine.SUM]
RATE = 0.5
PLAIN = {"steps": 3, "learning_rate": RATE, "lr_scheduler_type": "constant", "warmup": 0, "save_steps": None}


def exact(projected):
    return projected(projector=QuadprogProjector(reg_eps=1e-8))


SLOW = {  # of a Jacobian [tasks, parameters], float64
    "mean": aggregation.Mean(),
    "random": aggregation.Random(),
    "pcgrad": lambda rows: aggregation.PCGrad()(rows) / len(rows),
    "mgda": aggregation.MGDA(),
    "imtl_g": aggregation.IMTLG(),
    "cagrad": lambda rows: aggregation.CAGrad(c=0.5)(rows) / 1.5,
    "upgrad": exact(aggregation.UPGrad),
    "dualproj": exact(aggregation.DualProj),
}


def tasks_in(folder, names=("say", "tell", "ask"), same=False):
    """Tasks of the same prompts; unless the `same`, their answers differ, in length too."""
    tasks = {}
    for place, name in enumerate(names):
        lines = []
        for number in range(8):
            answer = WORDS if same else WORDS[place:] + WORDS[:place]
            length = number + 1 if same else (number % 3 + 1) * (place + 1)
            record = {"id": f"{name}{number}", "prompt": f"Count to {number}.", "response": " ".join(answer[:length])}
            lines.append(json.dumps(record) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(lines))
        tasks[name] = {"file": str(folder / f"{name}.jsonl"), "definition": f"{name} some words"}
    return tasks


def config_of(folder, method="lora", out="out", tasks=None, **sections):
    training = PLAIN | {"batch_size": 6, "order": "balanced"} | sections.pop("training", {})
    usual = {"tasks": tasks or tasks_in(folder), "adapter": {"dropout": 0}}
    return made(folder / out, method, **(usual | sections), training=training)


class Watch:
    """Gives a trainer plain gradient steps, and keeps it."""

    def __call__(self, trainer):
        self.trainer = trainer
        trainer.optimizer = torch.optim.SGD([p for p in trainer.model.parameters() if p.requires_grad], lr=RATE)
        return run.TrainerCallback()

    @property
    def parameters(self):
        return {name: own.detach().clone() for name, own in self.trainer.model.named_parameters() if own.requires_grad}


def trained(config):
    """What was trained, and the logged losses."""
    watch = Watch()
    path = run.train(config, callbacks=[watch])[0]
    return watch.parameters, [loss for _, loss in json.loads((path / "training.json").read_text())["losses"]]


def row_of(model, parameters, collator, examples, named):
    """The gradient of the mean loss over all supervised tokens of the examples, each by itself, and their number."""
    total, tokens = 0, 0
    for example in examples:
        batch = collator([example]) | ({"tasks": [example.task]} if named else {})
        labels = batch["labels"][0, 1:]  # a router needs them, too: it looks at the prompt alone
        total = total + F.cross_entropy(model(**batch).logits[0, :-1].double(), labels, reduction="sum")
        tokens += int((labels >= 0).sum())
    found = torch.autograd.grad(total / tokens, parameters, allow_unused=True)
    pairs = zip(parameters, found, strict=True)
    flat = [(torch.zeros_like(own) if gradient is None else gradient).flatten() for own, gradient in pairs]
    return torch.cat(flat).double(), tokens, total.item() / tokens


def batches(epochs, steps):
    """The positions of the examples of each step."""
    found = []
    for epoch in range(steps):
        epochs.set_epoch(epoch)
        found += np.array(list(epochs)).reshape(-1, epochs.batch_size).tolist()
    return found[:steps]


def slow(config):
    """The parameters after the training, by a loop over single examples; the losses; the least cosine of two rows."""
    recipe, collator = config.training, load_collator(config.model)
    corpus = gather(config.tasks, collator, recipe.seed, False, lambda *_: None)
    set_seed(recipe.seed)
    base = loading.load_base(config.model, device=torch.device("cpu"))
    model = prepare(base, collator.tokenizer, config).train()
    known = {name: own for name, own in model.named_parameters() if own.requires_grad}
    order = batches(Epochs(corpus, recipe.order, recipe.batch_size, recipe.seed), recipe.steps)
    losses, cosine = [], 1.0
    for step in range(recipe.steps):
        batch = [corpus.examples[place] for place in order[step]]
        tasks = list(dict.fromkeys(sorted((e.task for e in batch), key=list(config.tasks).index)))
        named = config.mixlora.routing == "task"
        found = [
            row_of(model, list(known.values()), collator, [e for e in batch if e.task == task], named) for task in tasks
        ]
        rows, weights = (
            torch.stack([row for row, *_ in found]),
            torch.tensor([recipe.weights.get(t, 1.0) for t in tasks]),
        )
        if recipe.combine == "sum":
            weights = weights * torch.tensor([float(tokens) for _, tokens, _ in found])
            combined = (weights / weights.sum()).double() @ rows
        else:
            rows = rows * (weights / weights.mean())[:, None]
            with torch.random.fork_rng():
                torch.manual_seed(int(np.random.SeedSequence([recipe.seed, step]).generate_state(1)[0]))
                combined = SLOW[recipe.combine](rows)
        losses.append(float((weights / weights.sum()) @ torch.tensor([loss for *_, loss in found])))
        cosine = min(cosine, float((F.normalize(rows) @ F.normalize(rows).T).min()))
        if recipe.max_grad_norm:
            combined = combined * min(1, recipe.max_grad_norm / float(combined.norm()))
        torch.nn.utils.vector_to_parameters(
            torch.nn.utils.parameters_to_vector(known.values()) - RATE * combined.float(), known.values()
        )
    return {name: own.detach() for name, own in known.items()}, losses, cosine


def assert_same(found, expected, atol=1e-6):
    assert found.keys() == expected.keys()
    for name, own in expected.items():
        assert_close(found[name], own, rtol=1e-5, atol=atol, msg=lambda said, name=name: f"{name}: {said}")


def assert_as_slow(config):
    """A training is the slow one's; the least cosine of two of its tasks' gradients."""
    found, losses = trained(config)
    expected, means, cosine = slow(config)
    assert_same(found, expected, 5e-6)  # rounding, after some steps
    assert_close(losses, means, rtol=1e-5, atol=1e-5)
    return cosine


@pytest.mark.parametrize("combine", AGGREGATORS)
def test_each_aggregator_is_torchjds_of_the_tasks_own_gradients(tmp_path, combine):
    training = {"combine": combine, "steps": 5, "micro_batch_size": 3, "logging_steps": 1, "max_grad_norm": 1}
    assert assert_as_slow(config_of(tmp_path, training=training)) < -0.2  # tasks were in conflict


CASES = {
    "mixlora": {"method": "mixlora"},
    "by task": {"method": "mixlora", "mixlora": {"r": 2, "num_factors": 4, "alpha": 4, "routing": "task"}},
    "full": {"method": "full"},
    "checkpointed": {"training": {"gradient_checkpointing": True, "workers": 1}},
    "projector": {"adapter": {"dropout": 0, "train_projector": True}},
    "weighted": {"training": {"weights": {"say": 0.25, "ask": 3}}},
    "weighted sum": {"training": {"combine": "sum", "weights": {"say": 0.25, "ask": 3}}},
    "without every task": {"training": {"order": "shuffled", "batch_size": 3, "weights": {"tell": 2}}},
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_that_of_single_examples(tmp_path, name):
    case = dict(CASES[name])
    recipe = {"combine": "upgrad", "micro_batch_size": 3, "logging_steps": 1, "max_grad_norm": 0.5}
    if name == "projector":
        case["tasks"] = tasks_in(tmp_path, ("say",)) | {"read_word": {"mini": "train", "samples": 8}}
    config = config_of(tmp_path, training=recipe | case.pop("training", {}), **case)
    if name == "without every task":
        corpus = gather(config.tasks, load_collator(config.model), 0, False, lambda *_: None)
        of_steps = [{corpus.tasks[k] for k in batch} for batch in batches(Epochs(corpus, "shuffled", 3, 0), 3)]
        assert {len(tasks) for tasks in of_steps} > {2}
    assert_as_slow(config)


@pytest.mark.slow
def test_micro_batches_change_nothing(tmp_path):
    tasks = tasks_in(tmp_path)
    recipe = {"combine": "cagrad", "order": "shuffled"}
    whole, *others = [
        trained(config_of(tmp_path, "mixlora", f"of{size}", tasks, training=recipe | {"micro_batch_size": size}))[0]
        for size in (6, 2, 1)
    ]
    for other in others:
        assert_same(other, whole)


@pytest.fixture(
    scope="module", params=[{}, {"bf16": True, "gradient_checkpointing": True}], ids=["float32", "bfloat16"]
)
def equal(request, tmp_path_factory):
    """Two tasks of equal gradients: {how they are combined: what a step trains}, and whether it is in bfloat16."""
    folder, recipe = tmp_path_factory.mktemp("equal"), {"steps": 1, "batch_size": 16, "max_grad_norm": 0}
    rounded = request.param == "bfloat16"
    recipe |= {"bf16": True, "gradient_checkpointing": True} if rounded else {}
    tasks = tasks_in(folder, ("say", "tell"), same=True)  # all examples of both in one step
    config = partial(config_of, folder, "lora", tasks=tasks)
    found = {name: trained(config(out=name, training=recipe | {"combine": name})) for name in Combine}
    return found, rounded


@pytest.mark.slow
@pytest.mark.parametrize("combine", AGGREGATORS)
def test_equal_gradients_step_as_the_sum_does(equal, combine):
    found, rounded = equal
    assert_same(found[combine][0], found["sum"][0], 1e-3 if rounded else 1e-6)
    assert_close(found[combine][1], found["sum"][1], rtol=1e-2 if rounded else 1e-6, atol=0)


def combination(combine, rows=2, **recipe):
    return Combination(RecipeSection.model_validate({"combine": combine} | recipe), [f"t{k}" for k in range(rows)])


@pytest.mark.parametrize("combine", ["pcgrad", "mgda", "upgrad", "dualproj"])
def test_of_two_opposite_gradients_neither_is_harmed(combine):
    """Rows g and -2g: nothing improves both, so no step is taken."""
    rows = torch.tensor([[1.0, 2.0, -1.0], [-2.0, -4.0, 2.0]], dtype=torch.float64)
    step = combination(combine).coefficients(rows @ rows.T, 0) @ rows
    assert_close(step, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("combine", ["pcgrad", "upgrad"])
@pytest.mark.parametrize("size", [1.0, 0.01])
def test_of_two_conflicting_gradients_each_loses_its_part_along_the_other(combine, size):
    one, two = torch.tensor([[3.0, 0.0], [-1.0, 2.0]], dtype=torch.float64) * torch.tensor([[1.0], [size]])
    rows = torch.stack([one, two])
    step = combination(combine).coefficients(rows @ rows.T, 0) @ rows
    expected = (one - (one @ two) / (two @ two) * two + two - (one @ two) / (one @ one) * one) / 2
    assert_close(step, expected, rtol=1e-6 if size == 1 else 1e-3, atol=0)
    assert ((rows @ step) / (rows.norm(dim=1) * step.norm())).min() > -1e-4


@pytest.mark.parametrize("combine", AGGREGATORS)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_size_of_gradients_changes_no_weight(combine, scale):
    """Of a Gram matrix with a trace below 1e-4, TorchJD's solvers see 0."""
    rows = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gram = rows @ rows.T
    assert_close(combination(combine, 3).coefficients(gram * scale, 4), combination(combine, 3).coefficients(gram, 4))


@pytest.mark.parametrize("combine", AGGREGATORS)
def test_what_has_no_gradient_and_what_is_no_number(combine):
    found = combination(combine)
    assert_close(found.coefficients(torch.zeros(2, 2).double(), 0), torch.tensor([0.5, 0.5]).double())
    assert_close(found.coefficients(torch.ones(1, 1).double(), 0), torch.ones(1).double())
    assert found.coefficients(torch.tensor([[1.0, torch.nan], [torch.nan, 1.0]]).double(), 0).isnan().all()


def test_a_loss_that_is_no_number_is_told_as_without_combining(tmp_path):
    with pytest.raises(TrainingError, match=r"out: the loss is no longer a number at step 2; lower training.learning"):
        run.train(config_of(tmp_path, training={"combine": "upgrad", "learning_rate": 1e30}))


def test_what_is_drawn_follows_seed_and_step_and_moves_no_other_generator():
    gram = torch.eye(3, dtype=torch.float64)
    before = torch.get_rng_state()
    first, again, later, other = (
        combination("random", 3, seed=seed).coefficients(gram, step) for seed, step in ((0, 1), (0, 1), (0, 2), (1, 1))
    )
    assert torch.equal(first, again) and torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first, later) and not torch.equal(first, other)


def test_shares_by_hand():
    tokens = {"t0": 4, "t1": 1, "t2": 0}
    weights = {"t0": 1.0, "t1": 3.0, "t2": 9.0}
    own = combination("mean", 3, weights=weights).shares(tokens)  # weights 1 and 3: relative to their mean 2
    assert own == {"t0": 0.5 / 4, "t1": 1.5}
    assert combination("sum", 3, weights=weights).shares(tokens) == {"t0": 1 / 7, "t1": 3 / 7}
    assert combination("sum", 3, weights={"t2": 2}).shares({"t0": 4, "t1": 1, "t2": 0}) == {"t0": 0.2, "t1": 0.2}


def test_the_sum_is_trainers_own_step(tmp_path):
    watch = Watch()
    run.train(config_of(tmp_path, training={"steps": 1}), callbacks=[watch])
    assert type(watch.trainer) is TaskTrainer
    for name in ("training_step", "compute_loss", "get_batch_samples", "floating_point_ops"):
        assert getattr(TaskTrainer, name) is getattr(Trainer, name)
    assert type(watch.trainer.data_collator) is Batches


def test_a_directory_of_an_earlier_version_is_one_of_the_sum(tmp_path):
    tasks = tasks_in(tmp_path)
    path = run.train(config_of(tmp_path, tasks=tasks, training={"steps": 1}))[0]
    record = json.loads((path / "training.json").read_text())
    del record["config"]["training"]["combine"], record["config"]["training"]["weights"]
    (path / "training.json").write_text(json.dumps(record))
    assert run.train(config_of(tmp_path, tasks=tasks, training={"steps": 1})) == [path]
    with pytest.raises(CheckpointError, match=r"training.combine was sum and is now mean"):
        run.train(config_of(tmp_path, tasks=tasks, training={"steps": 1, "combine": "mean"}))
    with pytest.raises(CheckpointError, match=r"training.weights.say was None and is now 2.0"):
        run.train(config_of(tmp_path, tasks=tasks, training={"steps": 1, "weights": {"say": 2}}))


def refused(config):
    with pytest.raises(ConfigError) as error:
        run.train(config)
    return str(error.value)


@pytest.mark.parametrize(
    ("training", "names", "message"),
    [
        ({"weights": {"sya": 2}}, ("say", "tell"), "training.weights: there is no task 'sya'; the tasks are say, tell"),
        (
            {"combine": "upgrad"},
            ("say",),
            "'say' is the only task, so there is nothing to combine; leave training.combine and training.weights out",
        ),
        (
            {"batch_size": 5},
            ("say", "tell"),
            "training.order is balanced, but batch_size 5 is not a multiple of 2, the number of tasks; choose one that "
            "is",
        ),
    ],
)
def test_what_cannot_be_combined_is_refused_before_a_base_is_loaded(tmp_path, no_model, training, names, message):
    assert refused(config_of(tmp_path, tasks=tasks_in(tmp_path, names), training=training)) == message
    assert not (tmp_path / "out").exists()


def test_a_balanced_order_with_weights_of_its_own(tmp_path, no_model):
    tasks = tasks_in(tmp_path)
    tasks["say"]["weight"] = 2
    assert refused(config_of(tmp_path, tasks=tasks)) == (
        "training.order is balanced: a step takes equally many examples of every task, whatever their weight; leave "
        "the weight of tasks out, or choose another order"
    )


@pytest.mark.parametrize("library", ["FSDP", "DeepSpeed"])
def test_gradients_that_a_library_divides(tmp_path, no_model, monkeypatch, library):
    monkeypatch.setenv(f"ACCELERATE_USE_{library.upper()}", "true")
    assert refused(config_of(tmp_path, training={"combine": "mean"})) == (
        f"training.combine and training.weights need whole gradients, which {library} divides among processes; train "
        f"without {library}, or leave them out"
    )


@pytest.mark.parametrize(
    ("combine", "absent"), [("mean", "torchjd"), ("upgrad", "quadprog"), ("cagrad", "cvxpy")], ids=lambda own: own
)
def test_without_torchjd_or_its_solvers_one_sentence_says_what_to_do(tmp_path, no_model, monkeypatch, combine, absent):
    monkeypatch.setitem(sys.modules, absent, None)
    assert refused(config_of(tmp_path, training={"combine": combine})) == (
        f"training.combine: {combine} needs TorchJD and its solvers, which are not installed; run: pip install "
        "'task-interference[aggregators]'"
    )


@pytest.mark.parametrize(
    ("method", "setting", "message"),
    [
        ("lora", "training.combine=nash", "training.combine: Input should be 'sum', 'mean', "),
        ("lora", "training.weights={say: -1}", "training.weights.say: Input should be greater than 0 (it is -1)"),
        ("lora", "training.weights={say: 0}", "training.weights.say: Input should be greater than 0 (it is 0)"),
        ("lora", "training.weights={say: .nan}", "training.weights.say: Input should be "),
        (
            "specialist",
            "training.combine=mean",
            "method specialist trains each task alone; leave training.combine and training.weights out",
        ),
    ],
)
def test_what_no_configuration_can_say(tmp_path, method, setting, message):
    with pytest.raises(ConfigError) as error:
        load(None, (), settings.overridden(values(tmp_path, method), [setting], {}))
    assert str(error.value).startswith(f"the options: {message}")


@pytest.mark.parametrize("setting", ["training.combine=mean", "training.weights={read_word: 2}"])
def test_tasks_of_steps_of_one_task(tmp_path, setting):
    with pytest.raises(ConfigError) as error:
        load(None, (), settings.overridden(values(tmp_path), ["training.order=task", setting], {}))
    assert str(error.value) == (
        "the options: training: with order task a step has one task, so combine and weights change nothing; choose "
        "order balanced, or leave them out"
    )
