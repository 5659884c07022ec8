"""Training with method `fit`: its start, the source that it runs, and its stage loss."""
