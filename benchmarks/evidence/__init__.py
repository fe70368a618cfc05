"""The rows of docs/results/accuracy.md: what each is, how it is made, and how they are tabled."""
