"""A trained text model with the words that it knows: texts in, vectors and classes out, a folder between runs."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from features.encoding import Vocabulary
from features.text import token_ids
from models.serialization import REMEDY
from models.text import TextClassifier, load_text, save_text
from models.text_fit import text_vectors

WORDS_FILE = "words.json"


@dataclass(frozen=True)
class TextModel:
    """A text classifier and what makes its token ids of texts."""

    classifier: TextClassifier
    vocabulary: Vocabulary
    max_tokens: int
    """Words of a text that are read: its first ones."""
    classes: dict[str, list[str]]
    """Names of each task's classes."""

    def vectors(self, texts: pl.Series) -> Tensor:
        """Return the texts' vectors (N, V) float32."""
        return text_vectors(self.classifier, text_ids(texts, self.vocabulary, self.max_tokens))


def text_ids(texts: pl.Series, vocabulary: Vocabulary, max_tokens: int) -> Tensor:
    """Return the token ids of texts (N, L) int64."""
    ids = token_ids(texts, vocabulary, max_tokens=max_tokens).list.to_array(max_tokens)
    return torch.tensor(ids.to_numpy(), dtype=torch.int64)


def save_text_model(model: TextModel, folder: Path) -> None:
    """Write weights (safetensors), spec, words and classes (JSON) into a folder."""
    save_text(model.classifier, folder)
    vocabulary = model.vocabulary
    document = {
        "words": vocabulary.values,
        "ids": vocabulary.ids,
        "first_bucket": vocabulary.first_bucket,
        "buckets": vocabulary.buckets,
        "max_tokens": model.max_tokens,
        "classes": model.classes,
    }
    (folder / WORDS_FILE).write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")


def load_text_model(folder: Path) -> TextModel:
    """Read what `save_text_model` wrote; ValueError when a file is missing, damaged or of another model."""
    classifier = load_text(folder)
    path = folder / WORDS_FILE
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        vocabulary = Vocabulary(
            values=document["words"],
            ids=document["ids"],
            first_bucket=document["first_bucket"],
            buckets=document["buckets"],
        )
        max_tokens, classes = document["max_tokens"], document["classes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): {REMEDY}") from error
    sizes = {task: len(names) for task, names in classes.items()}
    if (vocabulary.cardinality, sizes) != (classifier.spec.cardinality, classifier.spec.classes):
        raise ValueError(f"{path} is not of the model beside it (words or classes differ): {REMEDY}")
    return TextModel(classifier, vocabulary, max_tokens, classes)
