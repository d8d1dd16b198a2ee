"""Point-in-time features as pure functions over polars frames."""
