"""Tests of what travels between two machines."""
