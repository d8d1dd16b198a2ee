"""The text encoder of items: trained on the training days, folded into the run's encoder.

Shapes: K words (then hash buckets), V width of a text's vector.
"""

import datetime as dt
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import torch

from features.encoding import Encoder, vector_columns
from features.numeric import fit_scale
from features.plan import ITEM
from features.text import extend_words, known_words
from features.text_vectors import TextVectors
from features.words import hash_share, words
from models.text import LEAST_CLASSES, NO_LABEL, TextSpec
from models.text_fit import LabelledTexts, TextBudget, fit_text
from pipeline import tables
from pipeline.config import Config
from pipeline.feature_store import FeatureStore, raw_features
from pipeline.split import Days
from pipeline.text_model import TextModel, save_text_model, text_ids
from pipeline.text_section import Text

HASH_BUCKETS = 256
MAX_TOKENS = 64
VALIDATION_SHARE = 0.2
LEAST_TEXTS = 20
DEMANDS = ("click_demand", "conversion_demand")


def with_item_text(
    config: Config, store: FeatureStore, days: Days, encoder: Encoder, *, made_before: Encoder | None, folder: Path
) -> Encoder:
    """Return the encoder with the vectors of text.column's words; as it is where no column is named.

    They are fitted on items that the training days showed and on labels that were known before the first day after
    them. The trained model goes into folder/text. An encoder of a warm start keeps the vectors that it has, which its
    weights were trained on.

    Raises:
        ValueError: a warm start has other texts, or too few items have a text and a label.
    """
    settings = config.text
    if made_before is not None:
        _check_base(settings, made_before)
        return encoder
    if settings.column is None:
        return encoder
    items = training_items(store, days, settings)
    model = fit_items(settings, items, config.seed)
    save_text_model(model, folder / "text")
    vectors = folded(model)
    numbers = vectors.of(items["text"]).T
    names = vector_columns(settings.column, settings.width)
    scales = {
        name: fit_scale(pl.Series(name, values), bins=encoder.bins, min_zeros=items.height + 1)
        for name, values in zip(names, numbers, strict=True)
    }
    knots = encoder.knots | {name: scale.knots for name, scale in scales.items()}
    return replace(encoder, knots=knots, texts={settings.column: vectors})


def training_items(store: FeatureStore, days: Days, settings: Text) -> pl.DataFrame:
    """Return item_id, text, and the labels of the items shown on the training days, by item_id.

    click_demand says whether an item's clicks an impression, and conversion_demand whether its conversions a click,
    are above the median of its category, of all items without text.category. Counted is what was known before the
    first day after the training days, so that no later day, no late impression and no late label changes anything.
    """
    assert settings.column is not None
    cutoff = store.plan.start_of(days.train[-1] + dt.timedelta(days=1))
    received = tables.scan(store.interactions).filter(
        pl.col("date").is_in(days.train), pl.col("received_time") < cutoff
    )
    category = pl.lit("all") if settings.category is None else pl.col(settings.category)
    texts = (
        raw_features(store)
        .filter(pl.col("date").is_in(days.train))
        .select(ITEM, "date", pl.col(settings.column).list.join(" ").alias("text"), category.alias("category"))
        .unique()
        # An item has one text a day: that of its start.
        .join(received.select(ITEM, "date").unique(), on=[ITEM, "date"], how="semi")
        .sort("date", "text", "category")
        .group_by(ITEM, maintain_order=True)
        .last()
    )
    known = {name: pl.col(name) & (pl.col(f"{name}_known_at") < cutoff) for name in ("click", "conversion")}
    counts = received.group_by(ITEM).agg(
        pl.len().alias("shown"), *(known[name].fill_null(value=False).sum().alias(name) for name in known)
    )
    rates = texts.join(counts, on=ITEM).with_columns(
        pl.when(pl.col("shown") >= settings.min_impressions).then(pl.col("click") / pl.col("shown")).alias(DEMANDS[0]),
        pl.when(pl.col("click") >= settings.min_clicks).then(pl.col("conversion") / pl.col("click")).alias(DEMANDS[1]),
    )
    above = [(pl.col(name) > pl.col(name).median().over("category")).alias(name) for name in DEMANDS]
    return rates.with_columns(above).select(ITEM, "text", "category", *DEMANDS).sort(ITEM).collect()


def fit_items(settings: Text, items: pl.DataFrame, seed: int) -> TextModel:
    """Train the encoder on what `training_items` returns; a fifth of the texts chooses the epoch.

    Items whose text has no word are left out, and so is a label that training texts do not tell apart or no validation
    text has.

    Raises:
        ValueError: fewer than 20 items are left, or no label.
    """
    items = items.filter(words(items["text"]).list.len() > 0)
    labels = {name: items[name].cast(pl.String) for name in DEMANDS}
    if settings.category is not None:
        labels["category"] = items["category"]
    validates = pl.Series([hash_share(text) < VALIDATION_SHARE for text in items["text"]], dtype=pl.Boolean)
    classes = {
        name: column.drop_nulls().unique().sort().to_list()
        for name, column in labels.items()
        if column.filter(validates).count() and column.filter(~validates).drop_nulls().n_unique() >= LEAST_CLASSES
    }
    if items.height < LEAST_TEXTS or not classes:
        raise ValueError(
            f"text.column = {settings.column!r}: {items.height} items of the training days have a text and "
            f"{list(classes)} tell them apart, expected {LEAST_TEXTS} items and one label of {list(labels)}: give "
            "more training days, lower text.min_impressions, or leave text.column out"
        )
    known = extend_words(None, items["text"], min_count=2, max_words=items.height * MAX_TOKENS, added_on=dt.date.min)
    vocabulary = known_words(known, max_words=known.height, hash_buckets=HASH_BUCKETS)
    ids_NL = text_ids(items["text"], vocabulary, MAX_TOKENS)
    targets = [
        labels[name].replace_strict(found, range(len(found)), default=NO_LABEL, return_dtype=pl.Int64).to_numpy()
        for name, found in classes.items()
    ]
    labels_NT = torch.from_numpy(np.stack(targets, axis=1))
    sides = (torch.from_numpy(rows.to_numpy().copy()) for rows in (~validates, validates))
    training, validation = (LabelledTexts(ids_NL[rows], labels_NT[rows]) for rows in sides)
    sizes = {name: len(found) for name, found in classes.items()}
    spec = TextSpec(cardinality=vocabulary.cardinality, classes=sizes, vector_width=settings.width, seed=seed)
    return TextModel(fit_text(spec, training, validation, TextBudget()), vocabulary, MAX_TOKENS, classes)


def folded(model: TextModel) -> TextVectors:
    """Return the model's vectors word by word: the linear map of a mean is the mean of the mapped words."""
    vocabulary, classifier = model.vocabulary, model.classifier
    rows = torch.tensor([*vocabulary.ids, *range(vocabulary.first_bucket, vocabulary.cardinality)])
    with torch.inference_mode():
        mapped_KV = classifier.table.weight.double()[rows] @ classifier.output.weight.double().T
    return TextVectors(
        words=vocabulary.values,
        vectors=mapped_KV.tolist(),
        bias=classifier.output.bias.double().tolist(),
        max_words=model.max_tokens,
    )


def _check_base(settings: Text, base: Encoder) -> None:
    wanted = {} if settings.column is None else {settings.column: settings.width}
    held = {name: vectors.width for name, vectors in base.texts.items()}
    if wanted != held:
        raise ValueError(
            f"text.column and text.width ask for the vectors {wanted}, but the model to begin from has {held}: undo "
            "the change of [text], or train once without training.warm_start"
        )
