"""The example sets: where each comes from, and the form that it is written in."""
