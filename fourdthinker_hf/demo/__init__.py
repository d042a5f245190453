"""The demo: the page, how an answer is drawn on it, and uploaded videos."""
