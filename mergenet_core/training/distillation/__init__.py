"""Output distillation: its losses, the teacher, and what is kept of the teacher's outputs."""
