"""MMoE and PLE of torch-rechub and of DeepCTR-Torch on our encoded examples, at their own sizes and at ours.

Both get every column that our rankers get: ids as sparse features, sequences and multi-valued columns as mean-pooled
ones that share the item's embeddings, numbers as their place on the training quantiles in 0..1 with a flag where a
value is missing or zero. They have no context tower, so position, surface and hour are ordinary features. Their two
tasks are click and click-and-conversion, both on all impressions; conversion given a click is the ratio.

"own": torch-rechub with the sizes, batch and 10 epochs with early stopping on the validation click AUC of its own
example runs (8 experts of [16]; PLE 1 level, 2 + 1 experts; towers [8]; embeddings of 4; batch 2048); DeepCTR-Torch
with the defaults of its classes (MMoE 3 experts, PLE 1 + 1 in 2 levels, [256, 128], gates and towers [64], embeddings
of 4, batch 256, 1 epoch). "ours": embedding 16, the experts, layers, towers, levels, batch, epochs and learning rate
of the run's configuration. MMoE gets as many experts as our PLE has in all.
"""

import contextlib
import io
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.offline import keep_offline
from models.inputs import Features
from models.ranker import RankerSpec
from pipeline.config import Config
from pipeline.dataset import Examples
from pipeline.study_training import Fitted, Material

Arrays = dict[str, NDArray[Any]]
TASKS = 2
EMBEDDING, OWN_EMBEDDING, RECHUB_BATCH, RECHUB_EPOCHS = 16, 4, 2048, 10
PREDICT_ROWS = 16_384


def columns(features: Features, spec: RankerSpec) -> Arrays:
    """Return every column as an array: ids, lists, numbers in 0..1, and flags for missing and zero."""
    arrays: Arrays = {name: features.ids_BF[:, n].numpy() for n, name in enumerate(spec.single)}
    arrays |= {name: ids_BL.numpy() for name, ids_BL in features.pooled.items()}
    for n, name in enumerate(spec.numeric):
        position = features.positions_BF[:, n].numpy()
        arrays[name] = np.where(position <= spec.bins, position / spec.bins, 0).astype(np.float32)
        arrays[f"{name}:missing"] = (position == spec.bins + 1).astype(np.float32)
        arrays[f"{name}:zero"] = (position == spec.bins + 2).astype(np.float32)
    return arrays


def _joined(days: list[Examples], spec: RankerSpec) -> tuple[Arrays, NDArray[np.float32]]:
    parts = [columns(day.features, spec) for day in days]
    labels = [np.stack([day.clicks.numpy(), day.conversions.numpy()], axis=1) for day in days]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, np.concatenate(labels)


def _dense(spec: RankerSpec) -> list[str]:
    return [f"{name}{flag}" for name in spec.numeric for flag in ("", ":missing", ":zero")]


def _outputs(both: NDArray[Any]) -> NDArray[np.float32]:
    """Return p_click, p_conversion and p_click_and_conversion from click and click-and-conversion."""
    click, joint = both[:, 0], both[:, 1]
    return np.stack([click, np.minimum(joint / np.maximum(click, 1e-9), 1), joint], axis=1).astype(np.float32)


def rechub(kind: str, sizes: str, config: Config, spec: RankerSpec, seed: int) -> Callable[[Material], Fitted]:
    """Return a trainer of torch-rechub's MMOE or PLE."""
    from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
    from torch_rechub.models.multi_task import MMOE, PLE
    from torch_rechub.trainers import MTLTrainer
    from torch_rechub.utils.data import DataGenerator

    own, model = sizes == "own", config.model
    width = OWN_EMBEDDING if own else EMBEDDING
    cardinalities = spec.categorical_cardinalities
    shared = {name: field if field in spec.single else None for name, field in spec.pooled.items()}
    features = [SparseFeature(name, cardinalities[name], embed_dim=width) for name in spec.single]
    features += [
        SequenceFeature(
            name, cardinalities[field], embed_dim=width, pooling="mean", shared_with=shared[name], padding_idx=0
        )
        for name, field in spec.pooled.items()
    ]
    features += [DenseFeature(name) for name in _dense(spec)]
    hidden, tower = ([16], [8]) if own else (list(model.hidden), list(model.tower))
    networks = {"expert_params": {"dims": hidden}, "tower_params_list": [{"dims": tower}] * TASKS}
    types = ["classification"] * TASKS

    def build() -> torch.nn.Module:
        if kind == "mmoe":
            experts = 8 if own else model.experts + TASKS * model.task_experts
            return MMOE(features, types, experts, **networks)
        levels, specific, common = (1, 2, 1) if own else (model.levels, model.task_experts, model.experts)
        return PLE(features, types, levels, specific, common, **networks)

    def make(material: Material) -> Fitted:
        torch.manual_seed(seed)
        x, y = _joined(material.training, spec)
        x_val, y_val = _joined(material.validation, spec)
        batch = RECHUB_BATCH if own else config.training.batch_size
        train_loader, val_loader, _ = DataGenerator(x, y).generate_dataloader(
            x_val=x_val, y_val=y_val, x_test=x_val, y_test=y_val, batch_size=batch
        )
        rate = None if own else {"lr": config.training.learning_rate, "weight_decay": config.training.weight_decay}
        network, epochs = build(), RECHUB_EPOCHS if own else config.training.epochs
        with (
            tempfile.TemporaryDirectory() as scratch,
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            trainer = MTLTrainer(network, types, optimizer_params=rate, n_epoch=epochs, model_path=scratch)
            trainer.fit(train_loader, val_loader)
        network.eval()

        def predictor(given: Features) -> NDArray[np.float32]:
            tensors = {name: torch.from_numpy(array) for name, array in columns(given, spec).items()}
            with torch.inference_mode():
                parts = [
                    network({name: tensor[rows] for name, tensor in tensors.items()}).numpy()
                    for rows in torch.split(torch.arange(len(given)), PREDICT_ROWS)
                ]
            return _outputs(np.concatenate(parts))

        return Fitted(predictor, _size(network))

    return make


def deepctr(kind: str, sizes: str, config: Config, spec: RankerSpec, seed: int) -> Callable[[Material], Fitted]:
    """Return a trainer of DeepCTR-Torch's MMOE or PLE."""
    keep_offline()
    from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat
    from deepctr_torch.models import MMOE, PLE

    own, model = sizes == "own", config.model
    width = OWN_EMBEDDING if own else EMBEDDING
    cardinalities = spec.categorical_cardinalities
    features = [SparseFeat(name, cardinalities[name], embedding_dim=width) for name in spec.single]
    features += [DenseFeat(name) for name in _dense(spec)]

    def build(lengths: dict[str, int]) -> Any:
        pooled = [
            VarLenSparseFeat(
                SparseFeat(name, cardinalities[field], embedding_dim=width, embedding_name=field), maxlen=lengths[name]
            )
            for name, field in spec.pooled.items()
        ]
        given: dict[str, Any] = {"seed": seed, "task_names": ("click", "click_and_conversion")}
        if not own:
            networks = {"expert_dnn_hidden_units": tuple(model.hidden), "tower_dnn_hidden_units": tuple(model.tower)}
            given |= {**networks, "gate_dnn_hidden_units": ()}
        if kind == "mmoe":
            experts = {} if own else {"num_experts": model.experts + TASKS * model.task_experts}
            return MMOE([*features, *pooled], **given, **experts)
        experts = {"shared_expert_num": model.experts, "specific_expert_num": model.task_experts}
        return PLE([*features, *pooled], **given, **({} if own else {**experts, "num_levels": model.levels}))

    def make(material: Material) -> Fitted:
        torch.manual_seed(seed)
        x, y = _joined(material.training, spec)
        network = build({name: x[name].shape[1] for name in spec.pooled})
        optimizer: Any = "adam" if own else torch.optim.Adam(network.parameters(), lr=config.training.learning_rate)
        network.compile(optimizer, loss=["binary_crossentropy"] * TASKS)
        batch, epochs = (256, 1) if own else (config.training.batch_size, config.training.epochs)
        with contextlib.redirect_stdout(io.StringIO()):
            network.fit(x, y, batch_size=batch, epochs=epochs, verbose=0)
        return Fitted(lambda given: _outputs(network.predict(columns(given, spec), PREDICT_ROWS)), _size(network))

    return make


def _size(network: torch.nn.Module) -> dict[str, int]:
    tables = [layer for layer in network.modules() if isinstance(layer, torch.nn.Embedding)]
    parameters = sum(weight.numel() for weight in network.parameters())
    return {
        "parameters": parameters,
        "parameters_outside_tables": parameters - sum(layer.weight.numel() for layer in tables),
    }
