"""interference lookahead: what it prints, as text and as JSON, and what it refuses."""

import json

import pytest

from interference import prediction


@pytest.fixture(scope="module")
def file(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    path = folder / "c.yaml"
    path.write_text(json.dumps(start.data(folder / "run", held_out=12)))
    return path


@pytest.fixture
def done(interference, file):
    """The directory of the lookahead, made once."""
    place = file.with_name("run-lookahead")
    if not place.exists():
        said = interference("lookahead", file, "--quiet")
        assert said.code == 0, said.err
    return place


def test_a_matrix_for_every_number_of_steps(interference, file, tmp_path):
    said = interference("lookahead", file, "--out", tmp_path / "out", "--set", "lookahead.steps=[1,3]")
    assert said.code == 0, said.err
    words = " ".join(said.out.split())
    assert "recipe (lookahead.recipe): AdamW, a constant rate of 0.01, batches of 8 examples, weight decay 0, " in words
    assert "gradients clipped to 1; 2 seeds" in words
    assert "interference after 1 real step " in words and "interference after 3 real steps " in words
    assert words.count("affected \\ stepped") == 2 and "2 pairs of tasks: " in words
    assert "note: task 'red' was trained on 28 examples of the configuration; 12 others are held out, or share" in words
    assert "note: a task has 12 groups of held-out examples: its intervals are wide; raise lookahead.held_out" in words
    assert f"Lookahead(2 seeds; 1, 3 steps; 24 examples: red 12, blue 12) in {tmp_path / 'out'}" in said.out
    assert f"steps: 12/12\nnext: interference lookahead {tmp_path / 'out'} --json " in said.err


def test_json_has_every_cell(interference, done):
    said = interference("lookahead", done, "--json")
    rows = json.loads(said.out)
    assert said.code == 0 and said.err == ""
    assert len(rows) == 2 * 3 * 4 and {row["metric"] for row in rows} == {"interference", "delta"}
    found = prediction.load(done)
    for row in rows:
        expected = found.matrix(row["metric"], row["steps"]).loc[row["affected"], row["stepped"]]
        assert row["value"] == pytest.approx(expected)


def test_a_finished_one_is_printed_again(interference, done):
    first, again = (interference("lookahead", done, "--quiet") for _ in range(2))
    assert first.code == 0 and first.out == again.out and "interference after 5 real steps" in first.out


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("steps=[0,1]", "lookahead.steps: a branch of 0 steps is the checkpoint itself; begin with 1 or more"),
        ("steps=[1,1]", "lookahead.steps: is not ascending; list each number of steps once, the smallest first"),
        ("seeds=1", "lookahead.seeds: Input should be greater than or equal to 2"),
        ("held_out=39", "task 'red' has 1 examples to train on, but a step takes 8; 39 others are held out or share"),
        ("training=gone.yaml", "there is no configuration file gone.yaml"),
        ("training=.", ". is a directory, but has no training.json; name a YAML file or a training's directory"),
        ("recipe.batch_size=0", "lookahead.recipe.batch_size: Input should be greater than or equal to 1"),
        ("recipe.learning_rate=1e30", "the branch along 'red' with seed 0 diverged at step "),
    ],
)
def test_what_it_refuses(refused, file, tmp_path, setting, words):
    out = tmp_path / "out"
    assert words in refused("lookahead", file, "--quiet", "--out", out, "--set", f"lookahead.{setting}", out=out)


@pytest.mark.slow
def test_the_page_is_next_where_the_run_is_there(interference, file, done):
    assert f"next: interference lookahead {done} --json" in interference("lookahead", done).err
    assert interference("compute", file, "--quiet").code == 0
    run = file.with_name("run")
    assert interference("lookahead", done).err == f"next: interference report {run}\n"
    said = interference("report", run, "--out", file.with_name("report"), "--quiet")
    assert said.code == 0, said.err
    assert "How far does the first order hold?" in (file.with_name("report") / "report.html").read_text()


def test_a_task_alone_is_refused(refused, start, tmp_path):
    values = start.data(tmp_path / "run")
    values["tasks"].pop("red")
    (tmp_path / "c.yaml").write_text(json.dumps(values))
    said = refused("lookahead", tmp_path / "c.yaml", out=tmp_path / "run-lookahead")
    assert said == "a lookahead is of pairs of tasks, but the configuration has one task; give it another"


def test_a_taken_directory_is_refused(refused, file, done):
    said = refused("lookahead", file)
    assert said == f"{done} already holds a lookahead; choose another --out or delete it first"


def test_an_interrupted_one_says_so(interference, file, tmp_path, monkeypatch):
    from interference.branching.branches import Branches

    monkeypatch.setattr(Branches, "along", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    said = interference("lookahead", file, "--out", tmp_path / "out")
    assert said.code == 130
    assert said.err.endswith(
        f"interrupted: finished branches are kept beside {tmp_path / 'out'}; the same command continues\n"
    )
