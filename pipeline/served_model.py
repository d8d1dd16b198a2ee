"""The registered model as MLflow loads it: raw features in, probabilities out.

MLflow runs this file when a model is loaded (models from code), so nothing is pickled. It and pipeline/tracking.py
are the only files that import mlflow.
"""

from pathlib import Path
from typing import Any

import polars as pl
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from features.encoding import encode
from pipeline.dataset import raw_numeric, tensors
from pipeline.scoring import load_bundle

BATCH_ROWS = 16_384


class RankerModel(PythonModel):  # type: ignore[misc]
    """Encodes raw features with the model's own encoder and scores them with its calibrated ranker."""

    def load_context(self, context: Any) -> None:
        """Read encoder, weights and calibration from the model's artifacts."""
        self.bundle = load_bundle(Path(context.artifacts["model"]), "served")

    def predict(self, context: Any, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """Return p_click, p_conversion, p_click_and_conversion and the outputs of further tasks as a data frame.

        Args:
            context: MLflow's, not used after loading.
            model_input: a data frame with the raw features that the signature names.
            params: none are known.
        """
        del context, params
        spec = self.bundle.ranker.spec
        given = pl.from_pandas(model_input)
        optional: dict[str, Any] = {
            **dict.fromkeys(spec.single, pl.String),
            **dict.fromkeys(raw_numeric(spec, self.bundle.encoder), pl.Float64),
        }
        optional |= {name: pl.List(pl.String) for name in spec.pooled}
        absent = [pl.lit(None, kind).alias(name) for name, kind in optional.items() if name not in given.columns]
        codes = encode(given.with_columns(absent), self.bundle.encoder)
        features = tensors(codes, single=list(spec.single), numeric=list(spec.numeric), pooled=list(spec.pooled))
        return pl.DataFrame(self.bundle.predict(features, BATCH_ROWS), schema=spec.outputs()).to_pandas()


set_model(RankerModel())
