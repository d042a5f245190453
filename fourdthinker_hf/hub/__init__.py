"""Checkpoints and the Hub: converting, model and data set cards, publishing."""
