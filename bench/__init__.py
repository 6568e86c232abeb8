"""Measurements, each beside its floor: `make bench`."""
