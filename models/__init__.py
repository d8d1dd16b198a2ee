"""Layers, losses and models in torch: plain values in, tensors out, no paths, tables or configs."""
