"""Simulated clips with exact truth: scenes, physics, cameras, rendering, and the questions about them."""
