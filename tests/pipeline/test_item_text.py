"""The text encoder of items: labels of the training days alone, its vectors in both models, exact in ranking."""

import datetime as dt
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from features.encoding import Encoder, encode, load_encoder
from features.words import hash_share
from models.ranker import Ranker, predict
from models.retriever import Retriever
from pipeline import item_text
from pipeline.calibrate import Calibration
from pipeline.config import Config
from pipeline.dataset import examples_from, ranker_spec, raw_numeric, retriever_spec
from pipeline.example_tasks import KEPT
from pipeline.feature_plan import plan_of
from pipeline.feature_store import open_store
from pipeline.featurize import days_of, featurize, run_folder
from pipeline.importance import feature_groups
from pipeline.ingest import ingest
from pipeline.item_text import fit_items, training_items, with_item_text
from pipeline.pair_scorer import PairScorer
from pipeline.scoring import Bundle, check_features, load_day
from pipeline.served_model import RankerModel
from pipeline.split import Days
from pipeline.text_model import load_text_model
from pipeline.text_section import Text
from pipeline.tracking import signature
from pipeline.workspace import Workspace

TEXT = Text(column="title", category="category", width=4, min_impressions=5, min_clicks=1)
COLUMNS = [f"title__text_{place}" for place in range(4)]


@dataclass(frozen=True)
class Made:
    """A workspace after featurize."""

    config: Config
    workspace: Workspace
    days: Days

    @property
    def features(self) -> Path:
        """Return where the run keeps its features."""
        return run_folder(self.config, self.workspace, self.days) / "features"

    def encoder(self) -> Encoder:
        """Return the run's encoder."""
        return load_encoder(self.features / "encoder.json")

    def labels(self) -> pl.DataFrame:
        """Return the items that train the text encoder."""
        return training_items(open_store(self.config, self.workspace), self.days, self.config.text)


def _featurized(config: Config, source: Path, root: Path) -> Made:
    workspace = Workspace(root)
    ingest(config, workspace, source)
    days = days_of(config, workspace, None)
    featurize(config, workspace, days)
    return Made(config, workspace, days)


@pytest.fixture(scope="module")
def made(simulated_config: Config, simulated_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    config = simulated_config.model_copy(update={"text": TEXT})
    return _featurized(config, simulated_source, tmp_path_factory.mktemp("text") / "workspace")


@pytest.fixture(scope="module")
def bundle(made: Made) -> Bundle:
    plan, encoder = plan_of(made.config), made.encoder()
    ranker = Ranker(ranker_spec(made.config, plan, encoder, "mmoe", 3)).eval()
    return Bundle(encoder, ranker, Retriever(retriever_spec(made.config, plan, encoder, 3)).eval(), Calibration(), "1")


def _with_day_changed(source: Path, copy: Path, day: dt.date, *changes: pl.Expr) -> Path:
    shutil.copytree(source, copy)
    path = copy / "impressions" / f"{day}.parquet"
    pl.read_parquet(path).with_columns(*changes).write_parquet(path)
    return copy


def _digest(made: Made) -> str:
    return hashlib.sha256((made.features / "text" / "weights.safetensors").read_bytes()).hexdigest()


def test_a_later_day_changes_no_label_and_no_weight_but_a_training_day_does(
    made: Made, simulated_source: Path, tmp_path: Path
) -> None:
    clicked, known = pl.lit(value=True).alias("click"), pl.col("received_time").alias("click_received_time")
    for day, unchanged in ((made.days.validation[0], True), (made.days.test[0], True), (made.days.train[-1], False)):
        source = _with_day_changed(simulated_source, tmp_path / f"source-{day}", day, clicked, known)
        other = _featurized(made.config, source, tmp_path / f"workspace-{day}")
        assert other.labels().equals(made.labels()) == unchanged
        assert (_digest(other) == _digest(made)) == unchanged
        assert (other.encoder().texts == made.encoder().texts) == unchanged


def test_a_click_that_was_known_only_after_the_training_days_counts_as_none(
    made: Made, simulated_source: Path, tmp_path: Path
) -> None:
    day, no = made.days.train[-1], pl.lit(value=False)
    late = pl.col("click_received_time") + pl.duration(days=2)
    changes = {
        "late": (late, pl.col("conversion_received_time") + pl.duration(days=2)),
        "never": (
            no.alias("click"),
            no.alias("conversion"),
            *(
                pl.lit(None, pl.Datetime("us", "UTC")).alias(f"{name}_received_time")
                for name in ("click", "conversion")
            ),
        ),
    }
    labels = {}
    for name, change in changes.items():
        source = _with_day_changed(simulated_source, tmp_path / f"source-{name}", day, *change)
        workspace = Workspace(tmp_path / f"workspace-{name}")
        ingest(made.config, workspace, source)
        featurize(made.config, workspace, made.days)
        labels[name] = Made(made.config, workspace, made.days).labels()
    assert labels["late"].equals(labels["never"])
    assert not labels["late"].equals(made.labels())


def test_an_impression_that_was_received_only_after_the_training_days_is_not_there(
    made: Made, simulated_source: Path, tmp_path: Path
) -> None:
    day = made.days.train[-1]
    shown = pl.read_parquet(simulated_source / "impressions" / f"{day}.parquet")
    late = shown["item_id"].hash(1) % 3 == 0
    times = [name for name in shown.columns if name.endswith("received_time")]
    delayed = shown.with_columns(
        pl.when(late).then(pl.col(name) + pl.duration(days=2)).otherwise(name) for name in times
    )
    found = {}
    for name, rows in {"late": delayed, "never": shown.filter(~late)}.items():
        source = shutil.copytree(simulated_source, tmp_path / f"source-{name}")
        rows.write_parquet(source / "impressions" / f"{day}.parquet")
        workspace = Workspace(tmp_path / f"workspace-{name}")
        ingest(made.config, workspace, source)
        featurize(made.config, workspace, made.days)
        found[name] = Made(made.config, workspace, made.days).labels()
    assert found["late"].equals(found["never"])
    assert not found["late"].equals(made.labels())


def test_labels_are_rates_above_the_median_of_the_category_by_a_plain_loop(made: Made) -> None:
    store, cutoff = open_store(made.config, made.workspace), made.days.train[-1] + dt.timedelta(days=1)
    start = plan_of(made.config).start_of(cutoff)
    rows = pl.concat(
        [item_text.tables.scan(store.interactions).filter(pl.col("date") == day).collect() for day in made.days.train]
    )
    rates: dict[str, float | None] = {}
    for item, of_item in rows.group_by("item_id"):
        known = [
            at is not None and clicked and at < start
            for clicked, at in of_item.select("click", "click_known_at").iter_rows()
        ]
        rates[str(item[0])] = sum(known) / len(known) if len(known) >= 5 else None
    labels = made.labels()
    for _, of_category in labels.group_by("category"):
        known_rates = [rate for name in of_category["item_id"] if (rate := rates[name]) is not None]
        for name, label in of_category.select("item_id", "click_demand").iter_rows():
            rate = rates[name]
            assert label == (None if rate is None else rate > float(np.median(known_rates)))
    assert {True, False} <= set(labels["click_demand"])
    assert {True, False} <= set(labels["conversion_demand"])


def test_the_encoder_s_vectors_are_the_saved_model_s(made: Made) -> None:
    texts = pl.concat([made.labels()["text"], pl.Series(["never seen", "", None])])
    expected = load_text_model(made.features / "text").vectors(texts)
    torch.testing.assert_close(torch.from_numpy(made.encoder().texts["title"].of(texts)).float(), expected)


def test_examples_rank_and_retrieve_by_the_text(made: Made, bundle: Bundle) -> None:
    assert bundle.ranker.spec.numeric[-4:] == COLUMNS
    assert bundle.retriever.spec.item_numeric[-4:] == COLUMNS
    assert not set(COLUMNS) & {*bundle.retriever.spec.user_numeric, *bundle.ranker.spec.context_numeric}
    examples = (
        item_text.tables.scan(made.workspace.table("examples")).select(f"{name}_position" for name in COLUMNS).collect()
    )
    assert examples.null_count().row(0) == (0, 0, 0, 0)
    assert all(examples[name].n_unique() > 10 for name in examples.columns)


def test_a_pair_scores_as_its_example_does(made: Made, bundle: Bundle) -> None:
    day = load_day(made.config, made.workspace, made.features, made.days.test[0], bundle.encoder)
    raw = pl.read_parquet(made.features / f"raw-{made.days.test[0]}.parquet")
    raw = raw.with_columns(pl.lit(value).alias(name) for name, value in made.config.context.references().items())
    raw = raw.filter(pl.col("item_id").is_in(day.items["item_id"].implode()))
    encoded = pl.concat([raw.select(KEPT), encode(raw, bundle.encoder)], how="horizontal")
    examples = examples_from(encoded, bundle.ranker.spec, None)
    users, items = (
        examples.frame[f"{name}_id"].replace_strict(ids, range(len(ids)), return_dtype=pl.Int64).to_numpy()
        for name, ids in (("user", day.users["user_id"]), ("item", day.items["item_id"]))
    )
    scores = PairScorer(made.config, bundle, day).score(users, items)
    assert len(scores) > 300
    np.testing.assert_allclose(scores, predict(bundle.ranker, examples.features, 1000), rtol=1e-5)


def test_the_registered_model_takes_the_text_and_makes_its_numbers(made: Made, bundle: Bundle) -> None:
    check_features(bundle, plan_of(made.config))
    inputs = signature(bundle.ranker.spec, bundle.encoder).inputs.input_names()
    assert "title" in inputs
    assert not set(COLUMNS) & {*inputs, *raw_numeric(bundle.ranker.spec, bundle.encoder)}


def test_the_served_model_scores_raw_features_as_examples_are_scored(made: Made, bundle: Bundle) -> None:
    raw = pl.read_parquet(made.features / f"raw-{made.days.test[0]}.parquet").sort("event_time", "user_id", "item_id")
    encoded = pl.concat([raw.select(KEPT), encode(raw, bundle.encoder)], how="horizontal")
    expected = predict(bundle.ranker, examples_from(encoded, bundle.ranker.spec, None).features, 1000)
    model = RankerModel()
    model.bundle = bundle
    inputs = signature(bundle.ranker.spec, bundle.encoder).inputs.input_names()
    given = raw.select(inputs).to_pandas()
    np.testing.assert_allclose(model.predict(None, given).to_numpy(), expected, rtol=1e-5)
    untitled = model.predict(None, given.drop(columns="title")).to_numpy()
    assert np.abs(untitled - expected).max() > 1e-5


def test_the_numbers_of_a_text_are_permuted_together(made: Made, bundle: Bundle) -> None:
    groups = {group.name: group for group in feature_groups(bundle.ranker.spec, plan_of(made.config))}
    assert len(groups["title vector"].positions) == 4


def test_a_warm_start_keeps_the_vectors_and_refuses_other_ones(made: Made, tmp_path: Path) -> None:
    encoder, store = made.encoder(), open_store(made.config, made.workspace)
    assert with_item_text(made.config, store, made.days, encoder, made_before=encoder, folder=tmp_path) is encoder
    other = made.config.model_copy(update={"text": TEXT.model_copy(update={"width": 8})})
    with pytest.raises(
        ValueError, match=r"ask for the vectors {'title': 8}, but the model to begin from has {'title': 4}"
    ):
        with_item_text(other, store, made.days, encoder, made_before=encoder, folder=tmp_path)
    without = replace(encoder, texts={})
    with pytest.raises(ValueError, match=r"but the model to begin from has {}: undo the change of \[text\]"):
        with_item_text(made.config, store, made.days, encoder, made_before=without, folder=tmp_path)


def test_too_few_labels_are_refused(made: Made, tmp_path: Path) -> None:
    text = Text(column="title", min_impressions=10**6, min_clicks=10**6)
    config, store = made.config.model_copy(update={"text": text}), open_store(made.config, made.workspace)
    with pytest.raises(ValueError, match=r"text.column = 'title': \d+ items .* expected 20 items and one label of"):
        with_item_text(config, store, made.days, made.encoder(), made_before=None, folder=tmp_path)


def _items(labelled: Callable[[str], bool]) -> pl.DataFrame:
    """Return items whose click demand is known where asked for, and whose conversion demand is known everywhere."""
    texts = [f"red n{number}" if number % 2 else f"blue n{number}" for number in range(60)]
    clicks = [text.startswith("red") if labelled(text) else None for text in texts]
    conversions = [number % 3 == 0 for number in range(60)]
    return pl.DataFrame(
        {"item_id": texts, "text": texts, "category": "all", "click_demand": clicks, "conversion_demand": conversions},
        schema_overrides={"click_demand": pl.Boolean},
    )


def test_a_label_that_no_validation_text_has_is_left_out_since_it_would_choose_no_epoch() -> None:
    def trains(text: str) -> bool:
        return hash_share(text) >= item_text.VALIDATION_SHARE

    assert list(fit_items(Text(column="title"), _items(lambda _: True), 1).classes) == list(item_text.DEMANDS)
    for labelled in (trains, lambda text: not trains(text)):
        items = _items(labelled)
        assert list(fit_items(Text(column="title"), items, 1).classes) == ["conversion_demand"]
        nothing = items.with_columns(conversion_demand=pl.lit(None, pl.Boolean))
        with pytest.raises(ValueError, match=r"60 items .* and \[\] tell them apart"):
            fit_items(Text(column="title"), nothing, 1)


def test_items_without_a_word_do_not_count_as_items_with_a_text() -> None:
    empty = pl.int_range(pl.len()) >= 12
    items = _items(lambda _: True).with_columns(text=pl.when(~empty).then("text").otherwise(pl.lit("?!")))
    with pytest.raises(ValueError, match="12 items of the training days have a text"):
        fit_items(Text(column="title"), items, 1)
    items = items.with_columns(text=pl.when(~empty).then("text"))
    with pytest.raises(ValueError, match="12 items of the training days have a text"):
        fit_items(Text(column="title"), items, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"column": "name"}, r"text.column = 'name' is no column of items.multi: expected one of \['title'\]"),
        ({"column": "title", "category": "kind"}, r"text.category = 'kind' is no column of items.categorical"),
        ({"category": "brand"}, "text.category = 'brand' needs text.column"),
    ],
)
def test_a_text_section_that_names_no_column_is_refused(
    make_config: Callable[..., Config], text: dict[str, str], message: str
) -> None:
    items = {"id": "item_id", "multi": {"title": " "}, "categorical": ["brand"]}
    with pytest.raises(ValueError, match=message):
        make_config(items=items, text=text)
