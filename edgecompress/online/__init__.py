"""Distillation between two machines: a teacher that serves, students that connect, over gRPC."""
