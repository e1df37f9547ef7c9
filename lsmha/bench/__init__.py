"""How fast training is, beside what a user would take instead; every ratio from ways that took turns in one run."""
