import tomllib

import pytest

from core.config.base import ConfigError
from sweep.config import toml_writer
from sweep.config.sweep import create, find, load, names, open_config, parse, read_space


@pytest.mark.parametrize("name", names())
def test_every_search_space_is_valid_and_survives_being_written_out(name):
    config = parse(find(name).read_text(), source=name)
    again = parse(config.toml(), source=name)

    assert again.toml() == config.toml()
    assert again.space.distributions == config.space.distributions
    assert again.space.base == config.space.base


def test_any_character_of_keys_and_values_is_read_back_as_it_was():
    """DEL is a plain character to JSON and must be escaped in TOML."""
    name = "".join(map(chr, range(0x120))) + "\u2028"
    table = {"sweep": {"name": name, name: name}}

    assert tomllib.loads("\n".join(toml_writer.lines(table))) == table


def test_what_is_written_out_names_every_default():
    table = tomllib.loads(parse("", source="x.toml").toml())

    assert table["trial"]["distillation"]["temperature"] == 2.0
    assert table["sweep"]["name"] == "x"


def test_a_file_may_be_named_by_its_stem():
    assert load("demo").sweep.name == "demo"


def test_relative_paths_are_the_callers_and_made_whole(tmp_path, monkeypatch):
    (tmp_path / "speech").mkdir()
    monkeypatch.chdir(tmp_path)
    config = parse('[trial.corpus]\nname = "speech"\n[trial.teacher]\nbundle = "b"', source="x")

    assert config.space.base.corpus.name == str(tmp_path / "speech")
    assert config.space.base.teacher.bundle == str(tmp_path / "b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a =", "f.toml: must be TOML"),
        ("[sweeep]", "`sweeep` is not a key; did you mean `sweep`"),
        ("[sweep]\ntrails = 3", "`sweep.trails` is not a key; did you mean `trials`"),
        ("[sweep]\ntrials = 0", "`sweep.trials` must be"),
        ('[sweep]\ntrials = "3"', "`sweep.trials` must be"),
        ("sweep = 3", "`sweep` must be"),
        ("trial = 3", "`trial` must be"),
        ("[trial]\npruning = 3", "`pruning` must be"),
        ('[sweep]\nobjectives = ["wer"]', "`sweep.objectives` must be"),
        ('[early_stopping]\nkind = "asha"', "`early_stopping.kind` must be"),
        ('[search]\nsampler = "nsga"', "`search.sampler` must be"),
        ("[resources]\ncpus = 0", "`resources.cpus` must be"),
        ("[trial.pruning.l0]\nlambda_lrr = 1.0", "f.toml: .*did you mean `lambda_lr`"),
    ],
)
def test_what_cannot_be_is_refused_by_name(text, message):
    with pytest.raises(ConfigError, match=message):
        parse(text, source="f.toml")


def test_an_unknown_space_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean `commands`"):
        load("comands")


def test_a_corpus_that_is_not_there_is_refused_at_once(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text('[trial.corpus]\nname = "dmeo"')

    with pytest.raises(ConfigError, match=r"`corpus.name`.*did you mean `demo`"):
        load(str(path))


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(ConfigError, match="must be a readable text file"):
        load(str(path))


def test_a_sweeps_directory_is_made_once(tiny_space, tmp_path):
    folder = tmp_path / "sweep"
    create(folder, load(str(tiny_space)), tiny_space.read_text())

    assert open_config(folder).toml() == load(str(tiny_space)).toml()
    with pytest.raises(ConfigError, match="must be a new folder"):
        create(folder, load(str(tiny_space)), "")


def test_a_folder_without_a_sweep_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="must hold a sweep"):
        open_config(tmp_path)


def test_another_number_of_trials_leaves_the_rest():
    config = load("demo")

    assert config.with_budget(trials=3).sweep.trials == 3
    assert config.with_budget(trials=3).space.base == config.space.base


@pytest.mark.parametrize("kind", ["sqlite", "journal", "postgresql://me@host:5433/sweeps"])
def test_a_ledger_lies_in_one_of_three_places(kind):
    assert parse(f'[sweep]\nledger = "{kind}"', source="x.toml").sweep.ledger == kind


@pytest.mark.parametrize(
    "address", ["postgresql://me:s3cret@host/sweeps", "postgresql://host/sweeps?password=s3cret"]
)
def test_a_password_in_an_address_is_refused_and_not_repeated(address):
    with pytest.raises(ConfigError, match=r"`sweep.ledger` must be .* without a password") as told:
        parse(f'[sweep]\nledger = "{address}"', source="x.toml")
    assert "s3cret" not in str(told.value)


@pytest.mark.parametrize("kind", ["mysql://me@host/sweeps", "postgresql://host", "csv", ""])
def test_no_other_place_is_a_ledger_s(kind):
    with pytest.raises(ConfigError, match=r"`sweep.ledger` must be `sqlite`, `journal` or"):
        parse(f'[sweep]\nledger = "{kind}"', source="x.toml")


@pytest.mark.parametrize("uri", ["https://me:hush@host:5000", "postgresql://me:hush@host/mlflow"])
def test_a_password_in_the_file_is_refused_and_not_repeated(uri):
    with pytest.raises(ConfigError, match=r"`tracking\.uri` must hold no password") as told:
        parse(f'[tracking]\nuri = "{uri}"', source="x.toml")

    assert "hush" not in str(told.value)


def given(tmp_path, pruning: str, rest: str = "") -> str:
    """A search space that a person hands in."""
    path = tmp_path / "x.toml"
    path.write_text(f"[trial.pruning]\n{pruning}\n{rest}")
    return str(path)


def table(method: str, settings: str) -> str:
    return f"\n[trial.pruning.{method}]\n{settings}"


@pytest.mark.parametrize(
    ("pruning", "key", "value", "owners"),
    [
        ('method = "l0"' + table("acip", "smallest = 0.2"), "acip.smallest", "0.2", "`acip`"),
        (table("cpd", "rounds = 4"), "cpd.rounds", "4", "`cpd`"),
        (
            table("comp", "coarse_share = { uniform = [0.1, 0.5] }"),
            "comp.coarse_share",
            "uniform [0.1, 0.5]",
            "`comp`",
        ),
        (table("family", "order_share = 0.25"), "order_share", "0.25", "`family`"),  # the default
        (table("ld", "groups = { choice = [4, 8] }"), "ld.groups", "choice [4, 8]", "`ld`"),
        (
            'method = { choice = ["cpd", "comp"] }' + table("l0", "lambda_lr = 0.1"),
            "l0.lambda_lr",
            "0.1",
            "`l0`",
        ),
        ("further_targets = [0.3]", "further_targets", "[0.3]", "`acip`"),
        ('method = "interctc"\naxes = ["head"]', "axes", "['head']", "`l0`"),
        ("[trial.boosting]\nshare = 0.4", "boosting.share", "0.4", "`foster`"),
    ],
)
def test_a_key_that_no_chosen_method_reads_is_refused(tmp_path, pruning, key, value, owners):
    with pytest.raises(ConfigError) as caught:
        load(given(tmp_path, pruning))

    (line,) = str(caught.value).splitlines()
    assert f"{key}` must be left out where `pruning.method` is " in line
    assert f"but is {value} instead; it belongs to " in line
    assert owners in line


@pytest.mark.parametrize(
    ("pruning", "repair"),
    [
        ("lambda_lr = 0.1", "write it in [trial.pruning.l0]"),
        ("lambda_lr = { uniform = [0.1, 0.2] }", "write it in [trial.pruning.l0]"),
        ("smallest = 0.2", "write it in [trial.pruning.acip], and choose that method"),
        (
            'method = { choice = ["acip", "comp", "cpd"] }\nlearning_rate = 1e-3',
            "write it in [trial.pruning.acip] and [trial.pruning.cpd]",
        ),
    ],
)
def test_a_setting_outside_of_its_method_s_table_is_refused_with_its_place(
    tmp_path, pruning, repair
):
    with pytest.raises(ConfigError) as caught:
        load(given(tmp_path, pruning))

    (line,) = str(caught.value).splitlines()
    assert " must stand in the table of its method, but stands in [trial.pruning] instead" in line
    assert line.endswith(repair)


@pytest.mark.parametrize(
    "pruning",
    [
        'method = { choice = ["l0", "acip"] }'
        + table("acip", "smallest = 0.2")
        + table("l0", "lambda_lr = 0.1"),
        table("l0", 'start_from = "mope"') + table("mope", "groups = 4"),  # which gates start by
        'method = "constrained"'
        + table("constrained", 'start_from = { choice = ["ld", "numerical"] }')
        + table("ld", "groups = 4"),
        'method = "numerical"\nfurther_targets = [0.3]\nsteps = 3',
    ],
)
def test_a_key_that_one_of_the_chosen_methods_or_the_sweep_reads_is_taken(tmp_path, pruning):
    load(given(tmp_path, pruning))


def test_a_directory_from_before_methods_had_tables_is_refused_in_one_line(tiny_space, tmp_path):
    config = load(str(tiny_space))
    create(tmp_path / "sweep", config, "")
    file = tmp_path / "sweep" / "sweep.toml"
    flat = "[trial.pruning]\nlambda_lr = 0.1\ngate_lr = 0.1\n"
    file.write_text(file.read_text().replace("[trial.pruning]\n", flat))

    with pytest.raises(ConfigError, match=r"where version 0\.1 wrote it") as caught:
        open_config(tmp_path / "sweep")

    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", names())
def test_what_is_written_out_can_be_handed_in_again(name, tmp_path):
    path = tmp_path / f"{name}.toml"
    path.write_text(parse(find(name).read_text(), source=name).toml())

    read_space(str(path))
