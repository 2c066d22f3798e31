"""Tests of distillation between two machines."""
