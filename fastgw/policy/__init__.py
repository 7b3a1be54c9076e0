"""Decisions without I/O: who may do what, and what is left of it. Time is handed in."""
