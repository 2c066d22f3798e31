"""Ways to make a network smaller or better: scores, pruning, distillation. On core and train."""
