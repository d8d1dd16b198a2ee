"""Measurements: each prints ratios or paired differences against a named peer measured in the same run."""
