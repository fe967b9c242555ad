"""DaSS: dependency-aware semi-structured sparsity for GLU language models (arXiv 2405.01943)."""
