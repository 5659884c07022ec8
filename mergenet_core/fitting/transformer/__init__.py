"""The closed-form fit of transformers."""
