"""Checkpoints and the Hub: converting, cards, publishing."""
