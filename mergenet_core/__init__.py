"""Knowledge transfer between unlike models in parameter space (MergeNet, arXiv 2404.13322)."""

__version__ = "0.1.0"
