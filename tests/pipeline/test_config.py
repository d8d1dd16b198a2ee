"""Claims about configurations: every error at once, with its key, its value and what was expected."""

import datetime as dt
from pathlib import Path

import pytest

from pipeline.config import Config, load_config, parse_override

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
SMALLEST = 'name = "small"\n[source]\ninteractions = "log.csv"\n'


def load(tmp_path: Path, text: str = SMALLEST, **overrides: object) -> Config:
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, {key.replace("__", "."): value for key, value in overrides.items()})


@pytest.mark.parametrize("name", ["simulated", "kuairand"])
def test_the_example_loads(name: str) -> None:
    config = load_config(EXAMPLES / f"{name}.toml", {})
    assert config.name == name
    assert len(config.features.counters) >= 7


def test_the_smallest_config_needs_only_a_name_and_files(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert (config.labels.click, config.source.time_zone, config.seed) == ("click", "UTC", 1)


def test_all_errors_are_shown_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.toml") as error:
        load(tmp_path, seed=-1, training__epochs=0, model__body="transformer", features__bin=3)
    message = str(error.value)
    assert "seed = -1: Input should be greater than or equal to 0" in message
    assert "training.epochs = 0: Input should be greater than or equal to 1" in message
    assert "model.body = 'transformer'" in message
    assert "'ple'" in message, "what was expected is named"
    assert "unknown key features.bin = 3" in message


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"name: Field required"):
        load(tmp_path, '[source]\ninteractions = "log.csv"\n')


@pytest.mark.parametrize("more", ["", '[[source.streams]]\nfiles = "e.jsonl"\n'])
def test_a_source_is_a_labelled_log_or_streams(tmp_path: Path, more: str) -> None:
    log = 'interactions = "log.csv"\n' if more else ""
    with pytest.raises(ValueError, match=r"source needs either interactions .* or streams"):
        load(tmp_path, f'name = "small"\n[source]\n{log}{more}')


@pytest.mark.parametrize("columns", ["", 'static = true\nvalid_from = "since"\n'])
def test_a_side_table_is_static_or_has_a_history(tmp_path: Path, columns: str) -> None:
    text = f'{SMALLEST}[users]\nid = "user_id"\nfile = "u.csv"\n{columns}'
    with pytest.raises(ValueError, match=r"users\.file needs either static = true .* or valid_from"):
        load(tmp_path, text)


def test_durations_are_minutes_hours_or_days(tmp_path: Path) -> None:
    labels = load(tmp_path, f'{SMALLEST}[labels]\nclick_window = "90m"\nconversion_window = "3d"\n').labels
    assert (labels.click_window, labels.conversion_window) == (dt.timedelta(minutes=90), dt.timedelta(days=3))
    with pytest.raises(ValueError, match=r"labels\.click_window = '1 day': expected minutes, hours or days"):
        load(tmp_path, f'{SMALLEST}[labels]\nclick_window = "1 day"\n')


def test_a_missing_file_and_a_broken_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.toml does not exist"):
        load_config(tmp_path / "nowhere.toml", {})
    with pytest.raises(ValueError, match=r"config\.toml is not TOML"):
        load(tmp_path, "name = ")


@pytest.mark.parametrize("zone", ["Asia/Shangai", "", "../etc/passwd", "UTC+25:00"])
def test_an_unknown_time_zone_is_refused(tmp_path: Path, zone: str) -> None:
    with pytest.raises(ValueError, match=r"source\.time_zone = .*expected an IANA time zone"):
        load(tmp_path, source__time_zone=zone)


def test_an_unknown_counter_key_is_named_with_the_known_ones(tmp_path: Path) -> None:
    text = SMALLEST + (
        '[items]\nid = "item_id"\nfile = "i.csv"\nstatic = true\ncategorical = ["brand"]\nnumeric = ["price"]\n'
        'multi = { tag = "," }\n[[features.counters]]\nkeys = ["brend"]\n'
    )
    with pytest.raises(ValueError, match=r"key 'brend' is not a declared column: .*'brand', 'first_tag'"):
        load(tmp_path, text)
    for key in ("price", "tag", "hour"):
        with pytest.raises(ValueError, match=f"key '{key}' is not a declared column"):
            load(tmp_path, text.replace("brend", key))
    for key in ("brand", "first_tag", "user_id"):
        assert load(tmp_path, text.replace("brend", key)).features.counters[0].keys == [key]


@pytest.mark.parametrize("keys", ['["user_id", "user_id"]', '["user_id"]\n[[features.counters]]\nkeys = ["user_id"]'])
def test_repeated_counters_are_refused(tmp_path: Path, keys: str) -> None:
    with pytest.raises(ValueError, match=r"features\.counters keys .* are repeated"):
        load(tmp_path, f"{SMALLEST}[[features.counters]]\nkeys = {keys}\n")


@pytest.mark.parametrize("name", ["click", "conversion", "date", "user_id", "event_time", "surface"])
def test_a_side_column_cannot_take_a_name_that_is_taken(tmp_path: Path, name: str) -> None:
    text = SMALLEST + '[context.columns]\nsurface = "home"\n'
    with pytest.raises(ValueError, match=f"column '{name}' is declared twice or is the pipeline's own"):
        load(tmp_path, text, users__categorical=[name], users__id="id")


def test_keys_that_need_each_other_are_checked_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"item_age = true needs items\.available_from.*list_length = 300"):
        load(tmp_path, features__item_age=True, ranking__list_length=300)
    with pytest.raises(ValueError, match=r"model\.sequence = 'attention' needs features\.sequence_length above 0"):
        load(tmp_path, features__sequence_length=0, model__sequence="attention")


@pytest.mark.parametrize("ks", [[], [10, 5], [5, 5], [0, 5]])
def test_cut_offs_of_metrics_must_increase(tmp_path: Path, ks: list[int]) -> None:
    with pytest.raises(ValueError, match=r"evaluation\.ks"):
        load(tmp_path, evaluation__ks=ks)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training.epochs=2", ("training.epochs", 2)),
        ("training.learning_rate=1e-2", ("training.learning_rate", 0.01)),
        ("features.item_age=true", ("features.item_age", True)),
        ("model.hidden=[32, 16]", ("model.hidden", [32, 16])),
        ("model.body=mmoe", ("model.body", "mmoe")),
        ('model.body="mmoe"', ("model.body", "mmoe")),
        ("labels.click=rating = 5", ("labels.click", "rating = 5")),
        ("tracking.uri=sqlite:///a.db?x=1", ("tracking.uri", "sqlite:///a.db?x=1")),
        (" seed = 3", ("seed", 3)),
    ],
)
def test_an_override_is_read_as_toml_or_as_text(text: str, expected: tuple[str, object]) -> None:
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["seed", "=3", ""])
def test_an_override_without_key_and_value_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected KEY=VALUE"):
        parse_override(text)


def test_an_override_reaches_a_section_that_the_file_lacks(tmp_path: Path) -> None:
    assert load(tmp_path, training__epochs=7).training.epochs == 7
    with pytest.raises(ValueError, match=r"--set name\.first: 'name' is a value, not a table"):
        load(tmp_path, name__first="x")


def test_the_digest_changes_with_any_value_and_only_then(tmp_path: Path) -> None:
    assert load(tmp_path).digest() == load(tmp_path, seed=1).digest()
    assert load(tmp_path).digest() != load(tmp_path, seed=2).digest()
    assert len(load(tmp_path).digest()) == 8


def test_how_often_training_keeps_its_place_names_no_other_run_but_its_shards_do(tmp_path: Path) -> None:
    usual = load(tmp_path).digest()
    assert load(tmp_path, training__checkpoint_rows=7).digest() == usual
    assert load(tmp_path, training__shards=2).digest() != usual


@pytest.mark.parametrize(
    "uri",
    [
        "http://bob:S3CRET@mlflow:5000",
        "postgresql+psycopg://bob:S3CRET@db/mlflow",
        "postgresql://bob@db/mlflow?password=S3CRET",
        "mysql://bob:S3/CRET@db/mlflow",
    ],
)
def test_a_tracking_uri_with_a_password_is_refused_and_not_repeated(tmp_path: Path, uri: str) -> None:
    told = r"tracking\.uri: holds a password.* MLFLOW_TRACKING_PASSWORD \(http, https\) or PGPASSWORD"
    with pytest.raises(ValueError, match=told) as error:
        load(tmp_path, tracking__uri=uri)
    assert "CRET" not in str(error.value)


@pytest.mark.parametrize(
    "uri", ["http://mlflow:5000", "postgresql+psycopg://bob@127.0.0.1:5432/x", "sqlite:///a@b.db", "mlruns"]
)
def test_a_tracking_uri_without_a_password_is_taken(tmp_path: Path, uri: str) -> None:
    assert load(tmp_path, tracking__uri=uri).tracking.uri == uri


def test_a_uri_at_a_wrong_place_is_told_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tracking = 'http://mlflow'") as error:
        load(tmp_path, tracking="http://bob:S3CRET@mlflow")
    assert "S3CRET" not in str(error.value)
