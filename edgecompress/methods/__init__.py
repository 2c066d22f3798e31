"""Ways to make a network smaller or better: scores, pruning, distillation, merging. Built on core
and train.
"""
