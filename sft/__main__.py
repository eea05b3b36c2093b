"""``python -m sft``, which torchrun needs: ``torchrun --nproc-per-node 8 -m sft train recipe.yaml``."""

from sft.cli import main

main()
