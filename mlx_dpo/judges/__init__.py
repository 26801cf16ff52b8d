"""Which of two answers is better: judges of several kinds, and what a tournament between two models comes to."""
