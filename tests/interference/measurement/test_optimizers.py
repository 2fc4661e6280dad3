"""Second moments of saved optimizers: whose they are, and what is refused."""

import pickle
from collections.abc import Callable

import pytest
import torch
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from transformers import Adafactor

import interference
from interference import config
from interference.errors import CheckpointError, ConfigError
from interference.gradients.targets import find_targets
from interference.measurement.optimizers import from_file, from_optimizer, moments_of, state_of
from tests.support.models import llama, lora, opt
from tests.support.needed import needed
from tests.support.stepped import probes, trained

LINEAR = ["q_proj", "up_proj"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The checkpoint of a LoRA on two modules, and its model."""
    trainer, folder = trained(tmp_path_factory.mktemp("saved"), lora(llama(), LINEAR), steps=2)
    return folder / "optimizer.pt", trainer.model


def targets_of(model):
    return find_targets(model, "default")


ADAPTERS: dict[str, Callable] = {
    "lora": lambda: lora(llama(), LINEAR),
    "dora": lambda: lora(llama(), LINEAR, use_dora=True),
    "biases, which do not decay, between the factors": lambda: lora(opt(), ["q_proj", "fc1"], bias="lora_only"),
    "modules saved whole": lambda: lora(llama(), LINEAR, modules_to_save=["lm_head", "norm"]),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_saved_state_is_mapped_to_the_parameters_of_the_live_optimizer(name, tmp_path):
    trainer, folder = trained(tmp_path, ADAPTERS[name](), steps=2)
    targets = targets_of(trainer.model)
    read, live = from_file(folder, trainer.model, targets), from_optimizer(trainer.optimizer, targets)
    assert read.found.keys() == live.found.keys() and read.digest == live.digest
    for block, one in read.found.items():
        assert torch.equal(one.squares, live.found[block].squares) and one.step == 2, block


def test_an_optimizer_of_one_group_is_numbered_in_the_models_order(tmp_path):
    model = lora(opt(), ["q_proj", "fc1"], bias="lora_only")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, betas=(0.8, 0.9))
    model(**probes()["red"][0]).loss.backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    targets = targets_of(model)
    read = from_file(tmp_path / "optimizer.pt", model, targets)
    assert read.digest == from_optimizer(optimizer, targets).digest
    weight = next(iter(targets[0].taps.values())).weight
    one = read.found[targets[0].place.name]
    torch.testing.assert_close(one.corrected, weight.grad.flatten().square())  # after one step v_hat is g^2
    assert (one.betas, one.eps) == ((0.8, 0.9), 1e-8)


def test_amsgrad_divides_by_its_maximum():
    model = lora(llama(), LINEAR)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], amsgrad=True)
    for scale in (1.0, 0.0):
        optimizer.zero_grad()
        (scale * model(**probes()["red"][0]).loss).backward()
        optimizer.step()
    tap = targets_of(model)[0].taps["B"]
    found = from_optimizer(optimizer, targets_of(model)).found[tap.block.name].squares
    held = optimizer.state[tap.weight]
    assert torch.equal(found, held["max_exp_avg_sq"]) and (found > held["exp_avg_sq"]).any()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: lora(llama()), r"of 12 \+ 0 parameters in its groups, but adapter 'default' trains 42 \+ 0"),
        (lambda: lora(llama(num_hidden_layers=2), LINEAR), r"12 \+ 0 .* trains 8 \+ 0"),
        (
            lambda: lora(llama(), ["k_proj", "up_proj"]),
            r"parameter 1: the state is of shape \[32, 4\], but the .* \[16,",
        ),
        (lambda: lora(llama(hidden_size=16), LINEAR), r"of shape \[4, 32\], but the adapter's parameter of \[4, 16\]"),
    ],
)
def test_the_state_of_another_adapter_is_refused(saved, model, words):
    other = model()
    with pytest.raises(CheckpointError, match=words) as raised:
        from_file(saved[0], other, targets_of(other))
    assert "name the state that was saved with this adapter" in str(raised.value)


def changed(saved, tmp_path, change):
    """The saved state with a change, as a file."""
    state = torch.load(saved[0], weights_only=True)
    change(state)
    torch.save(state, tmp_path / "optimizer.pt")
    return tmp_path / "optimizer.pt"


def entry(**values):
    return lambda state: state["state"][0].update(values)


def only(**values):
    return lambda state: state["state"].update({0: values})


def group(**values):
    return lambda state: state["param_groups"][0].update(values)


NAN = torch.full((4, 32), float("nan"))
CHANGES = [
    (entry(exp_avg_sq=NAN), r"language\.0\.q_proj\.A: the second moments are not all finite and at least 0"),
    (entry(exp_avg_sq=-torch.ones(4, 32)), "not all finite and at least 0"),
    (entry(step=torch.tensor(0.0)), "the state is of step 0.0, but AdamW must have taken one"),
    (entry(step=torch.tensor(float("nan"))), "of step nan"),
    (entry(step=None), "of step None"),
    (group(betas=(0.9, 1.0)), r"no step of AdamW has betas \(0.9, 1.0\) and eps 1e-08"),
    (group(betas=0.9), "no step of AdamW has betas 0.9"),
    (group(eps=0.0), "and eps 0.0"),
    (group(params=[0]), r"of 1 \+ 0 parameters"),
    (lambda state: state["state"].pop(0), r"q_proj\.A: the state lacks this parameter, which is probed"),
    (lambda state: state.update(state={}), "has taken no step, or keeps no moments"),
    (lambda state: state.pop("param_groups"), "is not an optimizer's state: it has no state and param_groups"),
    (lambda state: state.update(param_groups=[{"params": "all"}]), "is not an optimizer's state"),
    (only(step=1, momentum_buffer=torch.zeros(4, 32)), "has momentum_buffer, step: the state of SGD"),
    (only(step=1, exp_avg=torch.zeros(4, 32)), "has exp_avg, step: a state without second moments, as Lion's"),
    (only(step=1, state1=NAN, state2=NAN, qmap1=NAN), "state2, step: a state of bitsandbytes"),
    (only(step=1, exp_avg_sq="text"), "the state of another optimizer than AdamW"),
    (entry(mu_product=torch.ones(())), "has exp_avg, exp_avg_sq, mu_product, step: the state of another optimizer"),
    (group(maximize=True), "the state is not of a torch.optim.AdamW that lowers a loss"),
    (lambda state: state["param_groups"][0].pop("amsgrad"), "its settings are betas, .*, weight_decay; name the state"),
    (lambda state: state.update(optimizer_state_dict=state.pop("state")), "is a state of DeepSpeed, which has second"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES, ids=[words for _, words in CHANGES])
def test_a_state_that_cannot_be_used_is_refused(saved, tmp_path, change, words):
    path = changed(saved, tmp_path, change)
    with pytest.raises(CheckpointError, match=words):
        from_file(path, saved[1], targets_of(saved[1]))


def test_adafactor_is_refused_by_name(tmp_path):
    trainer, folder = trained(tmp_path, lora(llama(), LINEAR), steps=1, optim="adafactor")
    assert isinstance(trainer.optimizer.optimizer, Adafactor)
    for read in (
        lambda: from_file(folder, trainer.model, targets_of(trainer.model)),
        lambda: from_optimizer(trainer.optimizer, targets_of(trainer.model)),
    ):
        with pytest.raises(CheckpointError, match=r"exp_avg_sq_row.*: the factored state of Adafactor"):
            read()


def stepped(kind, model, **options):
    """An optimizer of a class after one step."""
    optimizer = kind([p for p in model.parameters() if p.requires_grad], lr=1e-3, **options)
    model(**probes()["red"][0]).loss.backward()
    optimizer.step()
    return optimizer


OTHERS = {
    "NAdam": (torch.optim.NAdam, {}, "mu_product, step: the state of another optimizer than AdamW"),
    "RAdam": (torch.optim.RAdam, {}, r"is not of a torch\.optim\.AdamW that lowers a loss"),
    "Adamax": (torch.optim.Adamax, {}, "exp_inf, step: a state without second moments"),
    "8 bits": ("AdamW8bit", {"min_8bit_size": 16}, ": a state of bitsandbytes, whose moments are named otherwise"),
    "paged": ("PagedAdamW32bit", {}, "step: a state of bitsandbytes, whose moments are named otherwise"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_real_state_of_another_optimizer_is_refused_live_and_saved(name, tmp_path):
    kind, options, words = OTHERS[name]
    kind = getattr(needed("bitsandbytes").optim, kind) if isinstance(kind, str) else kind
    model = lora(llama(), LINEAR)
    optimizer = stepped(kind, model, **options)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(CheckpointError, match=words):
        from_optimizer(optimizer, targets_of(model))
    with pytest.raises(CheckpointError, match=words):
        from_file(tmp_path / "optimizer.pt", model, targets_of(model))


class Packed(torch.Tensor):
    """What a library keeps moments in: FSDP's parts, or 8 bits of torchao."""


def test_moments_in_a_tensor_of_another_class_are_refused():
    model = lora(llama(), LINEAR)
    optimizer = stepped(torch.optim.AdamW, model)
    for entry in optimizer.state.values():
        entry["exp_avg_sq"] = entry["exp_avg_sq"].as_subclass(Packed)
    with pytest.raises(CheckpointError, match=r"second moments in a Packed, in parts \(FSDP\) or packed"):
        from_optimizer(optimizer, targets_of(model))


def test_a_state_in_shards_is_refused_wherever_it_is_looked_for(tmp_path, saved):
    model = lora(llama(), LINEAR)
    state = get_optimizer_state_dict(model, stepped(torch.optim.AdamW, model))
    checkpoint.save({"optimizer": state}, checkpoint_id=tmp_path / "fsdp" / "optimizer_0", no_dist=True)
    (tmp_path / "zero" / "global_step3").mkdir(parents=True)
    part = tmp_path / "zero" / "global_step3" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    torch.save({"optimizer_state_dict": {"zero_stage": 1}, "ds_version": "0.17"}, part)
    for folder, engine in ((tmp_path / "fsdp", "FSDP"), (tmp_path / "zero", "DeepSpeed")):
        asked = {"model": {"base": "any", "adapter": str(folder)}, "tasks": {"any": {"file": "any.jsonl"}}}
        words = f"{folder}.* is a shard of an optimizer's state, as {engine} saves it, which cannot be read; measure"
        with pytest.raises(CheckpointError, match=words):
            state_of(config.build(asked | {"probe": {"step": "adam"}}, "test"))
        for path in (folder, next(folder.iterdir())):
            with pytest.raises(CheckpointError, match=words):
                from_file(path, saved[1], targets_of(saved[1]))
    with pytest.raises(CheckpointError, match="is a state of DeepSpeed, which has second moments in flat parts; name"):
        from_file(part, saved[1], targets_of(saved[1]))


def test_a_state_that_names_parameters_is_refused(tmp_path):
    model = lora(llama(), LINEAR)
    torch.save(get_optimizer_state_dict(model, stepped(torch.optim.AdamW, model)), tmp_path / "optimizer.bin")
    with pytest.raises(CheckpointError, match=r"optimizer\.bin is a state whose parameters have names instead of numb"):
        from_file(tmp_path, model, targets_of(model))


def test_what_accelerate_saves_of_a_plain_optimizer_is_read(tmp_path):
    model = lora(llama(), LINEAR)
    optimizer = stepped(torch.optim.AdamW, model)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.bin")
    assert from_file(tmp_path, model, targets_of(model)).digest == from_optimizer(optimizer, targets_of(model)).digest


class Command:
    """What runs a command when it is unpickled."""

    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


def test_nothing_is_executed(saved, tmp_path):
    path = tmp_path / "optimizer.pt"
    torch.save({"state": Command(), "param_groups": []}, path)
    with pytest.raises(CheckpointError, match="contains objects other than tensors, or is damaged; it is not read"):
        from_file(path, saved[1], targets_of(saved[1]))
    path.write_bytes(pickle.dumps(Command()))
    with pytest.raises(CheckpointError, match="or is damaged; it is not read"):
        from_file(path, saved[1], targets_of(saved[1]))


def test_a_path_without_a_state_is_refused(saved, tmp_path):
    for path in (tmp_path, tmp_path / "gone.pt"):
        with pytest.raises(CheckpointError, match="there is no optimizer's state at"):
            from_file(path, saved[1], targets_of(saved[1]))
    (tmp_path / "damaged.pt").write_bytes(saved[0].read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"damaged\.pt"):
        from_file(tmp_path / "damaged.pt", saved[1], targets_of(saved[1]))


def test_an_optimizer_that_nothing_reads_is_refused(saved):
    model = saved[1]
    with pytest.raises(ConfigError, match="only the step of AdamW reads it; add step='adam'"):
        interference.compute(model, probes(), optimizer=saved[0])
    with pytest.raises(ConfigError, match=r"optimizer is a dict, but must be a torch\.optim\.Optimizer or the path"):
        interference.compute(model, probes(), step="adam", optimizer={})
    with pytest.raises(ConfigError, match="step is 'sgd', but must be one of 'gradient', 'adam'"):
        interference.compute(model, probes(), step="sgd")
    with pytest.raises(ConfigError, match="sketch keeps sums of entries, which AdamW's step divides one by one"):
        interference.compute(model, probes(), step="adam", sketch=16)
    assert moments_of("gradient", None, model, targets_of(model)) is None


def test_a_live_optimizer_of_other_parameters_is_refused(saved):
    other = lora(llama(), LINEAR)
    optimizer = torch.optim.AdamW(other.parameters())
    with pytest.raises(
        CheckpointError, match="the optimizer AdamW has no state of any parameter: it has taken no step"
    ):
        from_optimizer(optimizer, targets_of(saved[1]))
    other(**probes()["red"][0]).loss.backward()
    optimizer.step()
    with pytest.raises(CheckpointError, match="the state lacks this parameter, which is probed"):
        from_optimizer(optimizer, targets_of(saved[1]))
