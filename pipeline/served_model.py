"""The registered model as MLflow loads it: raw features in, probabilities out.

MLflow runs this file when a model is loaded (models from code), so nothing is pickled. It and pipeline/tracking.py
are the only files that import mlflow.
"""

from pathlib import Path
from typing import Any

import polars as pl
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from features.encoding import encode, load_encoder
from models.ranker import load_ranker, predict
from pipeline.dataset import tensors

BATCH_ROWS = 16_384


class RankerModel(PythonModel):  # type: ignore[misc]
    """Encodes raw features with the model's own encoder and scores them with its ranker."""

    def load_context(self, context: Any) -> None:
        """Read encoder and weights from the model's artifacts."""
        folder = Path(context.artifacts["model"])
        self.encoder = load_encoder(folder / "encoder.json")
        self.ranker = load_ranker(folder / "ranker")

    def predict(self, context: Any, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """Return p_click, p_conversion, p_click_and_conversion and the outputs of further tasks as a data frame.

        Args:
            context: MLflow's, not used after loading.
            model_input: a data frame with the raw features that the signature names.
            params: none are known.
        """
        del context, params
        spec = self.ranker.spec
        given = pl.from_pandas(model_input)
        optional: dict[str, Any] = {**dict.fromkeys(spec.single, pl.String), **dict.fromkeys(spec.numeric, pl.Float64)}
        optional |= {name: pl.List(pl.String) for name in spec.pooled}
        absent = [pl.lit(None, kind).alias(name) for name, kind in optional.items() if name not in given.columns]
        codes = encode(given.with_columns(absent), self.encoder)
        features = tensors(codes, single=list(spec.single), numeric=list(spec.numeric), pooled=list(spec.pooled))
        return pl.DataFrame(predict(self.ranker, features, BATCH_ROWS), schema=spec.outputs()).to_pandas()


set_model(RankerModel())
