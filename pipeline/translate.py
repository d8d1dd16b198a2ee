"""Train translators of one column into several, together and apart, and say which is better at the same cost.

Shapes: R pairs, L tokens of the longest text, S seeds, M metrics.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn

from models.beam import beam_search
from models.sequence import (
    PADDING,
    SequenceModel,
    SequenceSpec,
    forward_operations,
    given_of,
    load_sequence_model,
    save_sequence_model,
)
from models.serialization import REMEDY
from pipeline.sequence_fit import Pairs, SequenceFit, fit_sequence
from pipeline.significance import Replicates, contrast, holm
from pipeline.stage import progress
from pipeline.translation_metrics import (
    TRANSLATION_METRICS,
    Scored,
    bounded,
    replicate_translations,
    require_bleu,
    score,
)
from pipeline.translation_table import TEST_SHARE, Vocabulary, is_test, read_pairs, vocabulary_of
from pipeline.workspace import read_json, write_json

JOINT, SEPARATE = "joint", "separate"
BATCH = 64
BEAM = 4
TRANSLATED = 256
"""Texts that are translated at once, at most."""
CELLS = 2**25
"""Probabilities held at once when texts are translated or scored, of each place of each hypothesis: 128 MiB."""
LEAST_TESTED = 2


@dataclass(frozen=True)
class Translation:
    """What is trained, and how."""

    table: Path
    source: str
    targets: Sequence[str]
    epochs: int = 30
    """Passes of the joint model over the training pairs; separate ones get the steps that cost as much in all."""
    seeds: int = 3
    replicates: int = 1000


@dataclass(frozen=True)
class Translator:
    """A trained model with the vocabularies of its columns."""

    model: SequenceModel
    source: Vocabulary
    targets: Mapping[str, Vocabulary]
    longest: Mapping[str, int]
    """Ids of the longest training target, END included: what a translation has at most."""

    def translate(self, texts: Sequence[str], target: str) -> list[str]:
        """Return the likeliest translation of each text that a beam of 4 finds."""
        found: list[str] = []
        size = self.at_once(target, self.longest[target])
        for start in progress(range(0, len(texts), size), "translate"):
            source_RLC = self.source.encode(texts[start : start + size], ended=False).unsqueeze(-1)
            ids = beam_search(self.model, target, source_RLC, width=BEAM, length=self.longest[target]).ids_BWT[:, 0]
            found += self.targets[target].decode(ids)
        return found

    def at_once(self, target: str, length: int) -> int:
        """Return how many texts fit into memory with the probabilities of a beam of targets of a length."""
        return max(1, min(TRANSLATED, CELLS // (BEAM * length * self.targets[target].size)))


@dataclass(frozen=True)
class _Side:
    """The pairs of one side of the split, as texts and as ids."""

    frame: pl.DataFrame
    pairs: Pairs


@dataclass(frozen=True)
class _Material:
    """All that is trained and tested on."""

    translation: Translation
    training: _Side
    testing: _Side
    vocabularies: Mapping[str, Vocabulary]

    def longest(self) -> dict[str, int]:
        """Return the ids of each target's longest training text."""
        return {name: ids.shape[-1] for name, ids in self.training.pairs.targets.items()}


@dataclass(frozen=True)
class _Plan:
    """The architectures by what they are trained for (`joint`, or a target alone), and their steps."""

    specs: dict[str, SequenceSpec]
    steps: dict[str, int]

    def parameters(self) -> dict[str, int]:
        """Return how many weights each has."""
        models = {name: SequenceModel(spec) for name, spec in self.specs.items()}
        return {name: sum(weight.numel() for weight in model.parameters()) for name, model in models.items()}


def train_translators(translation: Translation, output: Path) -> dict[str, Any]:
    """Train a joint model and one a target with each seed; write the first joint one and all figures into a new folder.

    Args:
        translation: what is trained.
        output: gets `model/` and `vocabularies.json`, which `load_translator` reads, and `translate.json`.

    Raises:
        ValueError: the table cannot be used, the folder exists, there are fewer than two targets or one that no decoder
            can be called, a side of the split has too few sources, or sacrebleu is not installed.
    """
    _check(translation, output)
    material = _material(translation)
    plan = _plan(material)
    scored, first, seconds = _train_all(material, plan)
    training, testing = material.training, material.testing
    result = {
        "table": translation.table.name,
        "source": translation.source,
        "targets": list(translation.targets),
        "epochs": translation.epochs,
        "seeds": translation.seeds,
        "replicates": translation.replicates,
        "pairs": {"training": len(training.pairs), "test": len(testing.pairs), "test_share": TEST_SHARE},
        "steps": plan.steps,
        "parameters": plan.parameters(),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "metrics": _compared(material, scored),
    }
    output.mkdir(parents=True)
    save_sequence_model(first.model, output / "model")
    tokens = {name: vocabulary.tokens for name, vocabulary in material.vocabularies.items()}
    kept = {"source": translation.source, "tokens": tokens, "longest": material.longest()}
    write_json(output / "vocabularies.json", kept)
    write_json(output / "translate.json", result)
    return result


def load_translator(folder: Path) -> Translator:
    """Read the joint model that `train_translators` wrote.

    Raises:
        ValueError: a file is missing, damaged or of another model.
    """
    path = folder / "vocabularies.json"
    kept = read_json(path, "translate-train")
    model = load_sequence_model(folder / "model").eval()
    try:
        vocabularies = {name: Vocabulary(tokens) for name, tokens in kept["tokens"].items()}
        made = Translator(model, vocabularies[kept["source"]], vocabularies, kept["longest"])
        sizes = made.source.size, {name: vocabularies[name].size for name in made.longest}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): {REMEDY}") from error
    if sizes != (model.spec.source_vocabulary, model.spec.targets):
        raise ValueError(f"{path} is not of the model beside it (vocabularies differ): {REMEDY}")
    return made


def _check(translation: Translation, output: Path) -> None:
    columns = [translation.source, *translation.targets]
    if len(translation.targets) < 2 or len(set(columns)) < len(columns):  # noqa: PLR2004  # one has nothing to share
        raise ValueError(f"--target names {list(translation.targets)}: expected two or more, different from the source")
    # A decoder bears its target's name in a ModuleDict, which takes none of its own attributes' names and no dot.
    if bad := [name for name in translation.targets if name == JOINT or "." in name or hasattr(nn.ModuleDict(), name)]:
        raise ValueError(f"--target names {bad}, which no decoder can be called: rename these columns")
    if output.exists():
        raise ValueError(f"--output {output} exists: give a new folder, or remove it")
    require_bleu()


def _material(translation: Translation) -> _Material:
    columns = [translation.source, *translation.targets]
    frame = read_pairs(translation.table, columns)
    tested = is_test(frame[translation.source].to_list())
    frames = [frame.filter(~tested), frame.filter(tested)]
    vocabularies = {name: vocabulary_of(frames[0][name].to_list()) for name in columns}
    trained, held = (part[translation.source].n_unique() for part in frames)
    if not trained or held < LEAST_TESTED:
        raise ValueError(
            f"--table {translation.table}: its sources' hashes leave {trained} of them to train and {held} to test, "
            f"expected 1 and {LEAST_TESTED} at least: give more rows"
        )
    training, testing = (_side(translation, part, vocabularies) for part in frames)
    return _Material(translation, training, testing, vocabularies)


def _side(translation: Translation, frame: pl.DataFrame, vocabularies: Mapping[str, Vocabulary]) -> _Side:
    source_RL = vocabularies[translation.source].encode(frame[translation.source].to_list(), ended=False)
    targets = {
        name: vocabularies[name].encode(frame[name].to_list(), ended=True).unsqueeze(1) for name in translation.targets
    }
    return _Side(frame, Pairs(source_RL.unsqueeze(-1), targets))


def _plan(material: _Material) -> _Plan:
    """Give separate models together the operations of the joint one, at the mean lengths of the training pairs."""
    translation, pairs = material.translation, material.training.pairs
    sizes = {name: material.vocabularies[name].size for name in translation.targets}
    joint = SequenceSpec(source_vocabulary=material.vocabularies[translation.source].size, targets=sizes)
    specs = {JOINT: joint, **{name: replace(joint, targets={name: size}) for name, size in sizes.items()}}
    lengths = {name: _mean_length(ids) for name, ids in pairs.targets.items()}
    costs = {
        name: forward_operations(
            spec, _mean_length(pairs.source_RLC[..., 0]), {one: lengths[one] for one in spec.targets}
        )
        for name, spec in specs.items()
    }
    steps = translation.epochs * math.ceil(len(pairs) / BATCH)
    apart = max(1, round(steps * costs[JOINT] / sum(costs[name] for name in sizes)))
    return _Plan(specs, {JOINT: steps, **dict.fromkeys(sizes, apart)})


def _mean_length(ids: Tensor) -> int:
    return round(float((ids != PADDING).sum(-1).float().mean()))


Scores = dict[str, dict[str, list[Scored]]]


def _train_all(material: _Material, plan: _Plan) -> tuple[Scores, Translator, dict[str, float]]:
    """Train all models with all seeds; return scores by target and system, the first joint model, and seconds."""
    translation, pairs = material.translation, material.training.pairs
    scored: Scores = {target: {JOINT: [], SEPARATE: []} for target in translation.targets}
    seconds, first = {JOINT: 0.0, SEPARATE: 0.0}, None
    # The first optimizer imports for about a second, which would count for the joint model alone.
    torch.optim.AdamW([torch.zeros(1)])
    for seed in range(1, translation.seeds + 1):
        for name, spec in plan.specs.items():
            system, begun = JOINT if name == JOINT else SEPARATE, time.perf_counter()
            fit = SequenceFit(plan.steps[name], BATCH, seed=seed)
            model, _ = fit_sequence(replace(spec, seed=seed), fit, pairs.only(spec.targets))
            seconds[system] += time.perf_counter() - begun
            source = material.vocabularies[translation.source]
            made = Translator(model, source, material.vocabularies, material.longest())
            first = first or made
            for target in spec.targets:
                scored[target][system].append(_score(material, made, target))
    assert first is not None, "the command asks for one seed or more"
    return scored, first, seconds


def _score(material: _Material, made: Translator, target: str) -> Scored:
    testing = material.testing
    reference_RL = testing.pairs.targets[target][:, 0]
    predicted = []
    with torch.inference_mode():
        for rows in torch.split(torch.arange(len(reference_RL)), made.at_once(target, reference_RL.shape[1])):
            memory = made.model.encode(testing.pairs.source_RLC[rows])
            logits = made.model.decode(target, memory, given_of(reference_RL[rows].unsqueeze(1)))
            predicted.append(logits.squeeze(1).argmax(-1))
    return score(
        predicted_RL=torch.cat(predicted),
        reference_RL=reference_RL,
        hypotheses=made.translate(testing.frame[material.translation.source].to_list(), target),
        references=testing.frame[target].to_list(),
    )


def _compared(material: _Material, scored: Scores) -> dict[str, Any]:
    """Return, by target and metric, both systems and their difference with intervals over sources and seeds.

    The p-values of the differences are adjusted together (`p_holm`).
    """
    numbers = material.testing.frame[material.translation.source].rank("dense").cast(pl.Int64) - 1
    found: dict[str, Any] = {}
    for target, systems in scored.items():
        measured = {
            system: replicate_translations(
                seeds, numbers.to_numpy(), replicates=material.translation.replicates, seed=0
            )
            for system, seeds in systems.items()
        }
        terms: dict[str, list[tuple[float, Replicates]]] = {name: [(1.0, one)] for name, one in measured.items()}
        terms["difference"] = [(1.0, measured[JOINT]), (-1.0, measured[SEPARATE])]
        found[target] = bounded({name: contrast(one, names=tuple(TRANSLATION_METRICS)) for name, one in terms.items()})
    differences = [metric["difference"] for metrics in found.values() for metric in metrics.values()]
    for difference, adjusted in zip(differences, holm([one["p"] for one in differences]), strict=True):
        difference["p_holm"] = adjusted
    return found
