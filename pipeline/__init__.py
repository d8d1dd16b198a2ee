"""The stages of the batch recommender, its command line and its tables."""
