"""How fast training is, beside what a user would take instead; ratios are of candidates that took turns in one run."""
